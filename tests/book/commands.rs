//! Commands in README and book, and those there are.

use ihip_tests::support::command::run;

use super::blocks::{blocks, pages};

/// The command line of a user's crate.
const PROGRAM: &str = env!("CARGO_BIN_EXE_own_pipeline");

/// What `--help` of a command lists.
fn commands(of: &[&str]) -> Vec<String> {
    let help = run(PROGRAM, &[of, &["--help"]].concat(), b"").text();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()));
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_is_one_that_the_command_line_takes() {
    let mut commands = 0;
    for block in blocks().iter().filter(|block| block.kind == "sh") {
        for line in block.text.lines() {
            let line = line.rsplit('|').next().unwrap_or_default().trim();
            let arguments = match line.strip_prefix("ihip ") {
                Some(arguments) => Some(arguments),
                None if line.starts_with("cargo run") => line.split_once(" -- ").map(|(_, arguments)| arguments),
                None => None,
            };
            let Some(arguments) = arguments else {
                assert!(line.starts_with("cargo test"), "{}: {line}", block.page);
                continue;
            };
            // What is wrong before `--help` is refused before help is given.
            let arguments: Vec<_> = arguments.split_whitespace().chain(["--help"]).collect();
            let outcome = run(PROGRAM, &arguments, b"");
            assert_eq!(outcome.code, Some(0), "{}: {line}\n{}", block.page, outcome.stderr);
            commands += 1;
        }
    }
    assert!(commands > 4, "{commands} commands");
}

#[test]
fn the_readme_names_every_command() {
    let (_, readme) = pages().swap_remove(0);
    let rows: Vec<_> = readme.lines().filter(|line| line.starts_with("| `ihip ")).collect();
    let first = commands(&[]);
    assert!(first.len() > 4, "{first:?}");
    for command in first {
        let within = commands(&[&command]);
        let named = |row: &&&str| {
            let rest = row.strip_prefix("| `ihip ").and_then(|row| row.strip_prefix(&command));
            rest.is_some_and(|rest| rest.starts_with(['`', ' ']))
        };
        let rows: Vec<_> = rows.iter().filter(named).collect();
        assert!(!rows.is_empty(), "README.md has no `ihip {command}`");
        for name in within {
            let forms = [format!("`ihip {command} {name}`"), format!(", `{name}`")];
            let told = rows.iter().any(|row| forms.iter().any(|form| row.contains(form)));
            assert!(told, "README.md has no `ihip {command} {name}`");
        }
    }
}
