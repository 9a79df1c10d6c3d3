//! Pipelines from TOML: what a person gets to read.

use ihip_dsl::{Report, parse_toml};

/// The report on a file.
fn report(text: &str) -> String {
    let errors = parse_toml(text).expect_err("something is wrong");
    Report::new("mine.toml", text, &errors).to_string()
}

#[test]
fn every_form_of_a_table_says_the_same() {
    let written = r#"
        name = "Mine"
        doc = "Two stages."
        sink = 256
        window = 1_024

        [[stage]]
        chunk = 0x40
        query_stride = 4

        [[stage]]
        keep = 4096
        chunk = 16

        [attend]
        keep = 1024

        [rope]
        scan = "relative"
        attend = "streaming"

        [[layers]]
        layers = "0..=2"
        [layers.attend]
        keep = 2048

        [[layers]]
        layers = 5
        rope = { scan = "chunk_indexed" }
    "#;
    let brief = r#"
        rope = { attend = 'streaming', scan = 'relative' }
        attend.keep = 1024
        stage = [{ chunk = 64, query_stride = 4 }, { keep = 4096, chunk = 16 }]
        layers = [{ layers = "0 ..= 2", attend.keep = 2048 }, { layers = "5", rope.scan = "chunk_indexed" }]
        window = 1024
        sink = 256
        "name" = "Mine"
        doc = """
Two stages."""
    "#;
    let pipeline = parse_toml(written).unwrap();
    assert_eq!(parse_toml(brief).unwrap(), pipeline);
    insta::assert_snapshot!(pipeline);
    insta::assert_snapshot!(pipeline.toml());
}

#[test]
fn several_errors_come_in_one_pass_each_with_its_line_underlined() {
    let text = "name = \"Mine\"\nsink = 256\nwindow = 62\nquery_blok = 64\n\n[[stage]]\nchunk = 32\nkeep = \"many\"\n\n\
                [attend]\nkeep = 64.5\n\n[rope]\nscan = \"relativ\"\n";
    insta::assert_snapshot!(report(text));
}

#[test]
fn a_key_that_stands_twice_is_a_word_that_stands_twice() {
    let text = "name = \"Mine\"\nsink = 256\nsink = 128\nwindow = 62\n[rope]\nattend = \"none\"\n[rope]\nattend = \"streaming\"\n";
    insta::assert_snapshot!(report(text));
    let text = "name = \"Mine\"\nname = \"Yours\"\nsink = 256\nwindow = 62\n[rope]\nattend = \"none\"\n";
    insta::assert_snapshot!(report(text));
}

#[test]
fn values_of_every_wrong_type_are_errors_of_their_word() {
    let text = "name = \"Mine\"\nsink = 1979-05-27\nwindow = [1, 2]\nquery_block = { a = 1 }\nattend = 5\nranking = true\n\
                stage = []\nlayers = \"0..2\"\n[rope]\nattend = -4\nx.y.z = 1\n";
    insta::assert_snapshot!(report(text));
}

#[test]
fn layers_are_told_as_in_rust() {
    let text = |layers: &str| {
        format!(
            "name = \"Mine\"\nsink = 4\nwindow = 64\nrope = {{ attend = \"none\" }}\n[[layers]]\n{layers}\nsink = 8\n"
        )
    };
    assert!(parse_toml(&text("layers = 3")).is_ok());
    let wrong = [
        "",
        "layers = \"0..2\"",
        "layers = \"2..=0\"",
        "layers = \"0..=\"",
        "layers = \"0..=2 3\"",
        "layers = \"0-2\"",
        "layers = \"0, 1\"",
        "layers = \"first\"",
        "layers = \"0..=70_000\"",
    ];
    let reports: Vec<_> = wrong.iter().map(|layers| report(&text(layers))).collect();
    insta::assert_snapshot!(reports.join("\n\n"));
}

#[test]
fn what_is_no_toml_is_told_where_it_stands() {
    let texts = [
        "name = \"Mine\"\nsink = 256\nwindow 62\nrope = { attend = \"none\"\n",
        "name = \"Mine\"\nsink = 256\nwindow = 62\nrope = { attend = none }\n",
        "name = \"Mine\"\nsink = 25__6\nwindow = 62\nrope = { attend = \"non\" }\n",
        "name = \"Mine\"\nsink = 4\nwindow = 62\nrope = { attend = \"none\" }\nrope.scan = \"none\"\n",
    ];
    insta::assert_snapshot!(texts.map(report).join("\n\n"));
}

#[test]
fn what_stands_outside_of_the_words_is_told_as_well() {
    let texts =
        ["", "sink = 4\nwindow = 62\n", "name = 5\n", "name = \"Self\"\ndoc = { x = 1 }\n", "name = \"not one\"\n"];
    let reports = texts.map(|text| report(&(text.to_owned() + "rope = { attend = \"none\" }\nsink = 4\nwindow = 4\n")));
    insta::assert_snapshot!(reports.join("\n\n"));
}

#[test]
fn neither_long_lines_nor_control_characters_reach_a_terminal() {
    let wide = format!(
        "name = \"Mine\"\nsink = 4\nwindow = 4\nrope = {{ {}attend = \"non\\u001b[31me\" }}\n",
        " ".repeat(400)
    );
    insta::assert_snapshot!(report(&wide));
    let report = report(&format!("\"{}\\u0007\" = 1\n", "long".repeat(10_000)));
    assert!(report.chars().all(|c| c == '\n' || !c.is_control()), "{report}");
    assert!(report.lines().all(|line| line.chars().count() < 700), "{report}");
}
