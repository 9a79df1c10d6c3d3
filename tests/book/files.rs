//! Blocks of TOML: read by the door that `--pruning` reads files by.

use ihip_dsl::check::Checked;
use ihip_dsl::error::Region;
use ihip_dsl::{Errors, Report, parse_str_among, parse_toml_among, report};
use ihip_model::registry;

use super::blocks::{Block, blocks};
use super::declared;

/// What the book calls its file.
const FILE: &str = "mine.toml";

fn read(block: &Block) -> Result<Checked<Region>, Errors<Region>> {
    parse_toml_among(&block.text, &registry::declared())
}

#[test]
fn every_pipeline_in_toml_is_right_and_wise() {
    let blocks = blocks();
    let files: Vec<_> = blocks.iter().filter(|block| block.kind == "toml").collect();
    assert!(files.len() > 20, "{} files", files.len());
    for block in files {
        let page = &block.page;
        let warnings = read(block).unwrap_or_else(|errors| panic!("{page}: {errors}")).warnings;
        let warnings: Vec<_> = warnings.iter().map(|warning| report::warning(FILE, warning)).collect();
        assert!(warnings.is_empty(), "{page}: {}", warnings.join("\n"));
    }
}

#[test]
fn every_pipeline_of_one_name_on_a_page_is_the_same_in_rust_and_in_toml() {
    let blocks = blocks();
    let mut pairs = 0;
    for block in blocks.iter().filter(|block| block.kind == "toml") {
        let page = &block.page;
        let pipeline = read(block).unwrap_or_else(|errors| panic!("{page}: {errors}")).pipeline;
        for rust in blocks.iter().filter(|rust| rust.kind == "rust" && rust.page == *page) {
            for declaration in declared(rust) {
                let text = declaration.to_string();
                if !text.contains(&format!("pub {} ", pipeline.name())) {
                    continue;
                }
                let declared =
                    parse_str_among(&text, &registry::declared()).unwrap_or_else(|errors| panic!("{page}: {errors}"));
                assert_eq!(
                    (declared[0].refresh(), declared[0].base()),
                    (pipeline.refresh(), pipeline.base()),
                    "{page}"
                );
                assert_eq!(declared[0].overrides(), pipeline.overrides(), "{page}");
                pairs += 1;
            }
        }
    }
    assert!(pairs > 20, "{pairs} pairs");
}

#[test]
fn every_report_is_on_the_file_above_it() {
    let blocks = blocks();
    let (mut said, mut reported) = (String::new(), String::new());
    for pair in blocks.windows(2) {
        let page = &pair[0].page;
        let report = match pair[0].kind.as_str() {
            "toml,wrong" => {
                let errors = read(&pair[0]).map(|_| ()).expect_err(page);
                format!("error: {}\n", Report::new(FILE, &pair[0].text, &errors))
            }
            "toml,unwise" => {
                let warnings = read(&pair[0]).unwrap_or_else(|errors| panic!("{page}: {errors}")).warnings;
                warnings.iter().map(|warning| report::warning(FILE, warning) + "\n").collect()
            }
            _ => continue,
        };
        assert_eq!(pair[1].kind, "text", "{page}: a file that is not right is followed by what is said about it");
        said += &format!("{page}\n{}", pair[1].text);
        reported += &format!("{page}\n{report}");
    }
    assert_eq!(said, reported);
    assert!(!said.is_empty());
}
