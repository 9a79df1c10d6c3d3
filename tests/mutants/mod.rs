//! Every mutant dies: some test fails where the kernels make its mistake.
//!
//! `cargo test -p ihip-tests --test root -- --ignored --nocapture every_mutant_dies` runs them all and says which test
//! killed each. Every other run of the tests sees to it that each can still be made, and runs three.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ihip_dsl::emit::{Activation, Paging, Program, Slots};
use ihip_tests::support::mutant::{Applied, Mutant, VARIABLE, all};
use ihip_tests::support::page;
use serde::{Deserialize, Serialize};

use crate::families::{every_head, layers, quantised_layers, scored_layers};

const PRELUDE: &str = include_str!("../../ihip-dsl/src/emit/prelude.cu");
/// Threads of the tests of a mutant. As many mutants run side by side as a machine has threads for.
const THREADS: usize = 2;
/// Far longer than the tests of a mutant take: what runs on is a kernel that never ends.
const LIMIT: Duration = Duration::from_secs(1200);

/// Names and texts of what mutants are made of: the kernels that the tests of families run, and the prelude.
fn texts() -> Vec<(String, String)> {
    let layers = layers().into_iter().chain(scored_layers()).chain(quantised_layers()).chain(every_head());
    let plans = layers.map(|layer| layer.plan());
    let programs = plans.map(|plan| Program::new(&plan, Activation::F32).expect("a usual head"));
    let slots = Slots { pages: 3, keys: 2, values: 1 };
    let kernels = programs.flat_map(|program| {
        let own = program.kernels();
        let keeping = program.keeping_probes(2);
        [own, keeping.kernels(), Paging::new(&keeping, slots).kernels()].concat()
    });
    let own = |text: String| text.split_once(PRELUDE).map(|(_, own)| own.to_owned()).expect("a prelude in front");
    let texts = kernels.map(|kernel| (kernel.name, own(kernel.text)));
    texts.chain([("prelude".to_owned(), PRELUDE.to_owned())]).collect()
}

/// Why a mutant cannot be made, in words.
fn complaint(mutant: &Mutant, texts: &[(String, String)]) -> Option<String> {
    let Mutant { name, kernel, replace, file, .. } = mutant;
    let applied: Vec<(&str, Applied)> =
        texts.iter().map(|(kernel, text)| (kernel.as_str(), mutant.apply(kernel, text))).collect();
    if let Some((kernel, Applied::Unclear(times))) =
        applied.iter().find(|(_, applied)| matches!(applied, Applied::Unclear(_)))
    {
        return Some(format!("{file}: `{name}` is unclear: {kernel} says this {times} times:\n{replace}"));
    }
    applied.iter().all(|(_, applied)| *applied == Applied::Not).then(|| {
        format!(
            "{file}: `{name}` does not apply any more: no kernel with {kernel} in its name says this now:\n{replace}\n\
             Write down how the texts put the same idea today, or take the mutant out if they have no such idea."
        )
    })
}

/// How a mutant ended.
#[derive(Debug)]
enum End {
    /// These tests failed.
    Killed(Vec<String>),
    /// A kernel never ended.
    Hung,
}

/// A mutant's end in `fixtures/proof/mutants.toml`.
#[derive(Serialize, Deserialize)]
struct Death {
    mutant: String,
    /// Tests that failed; none where a kernel never ended.
    killed_by: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Deaths {
    death: Vec<Death>,
}

impl Deaths {
    fn to_markdown(&self) -> String {
        let mut table = "| mutant | killed by |\n|---|---|\n".to_owned();
        for Death { mutant, killed_by } in &self.death {
            let killed_by: Vec<String> = killed_by.iter().map(|test| format!("`{test}`")).collect();
            let killed_by = if killed_by.is_empty() { "it never ends".to_owned() } else { killed_by.join(", ") };
            let _ = writeln!(table, "| {mutant} | {killed_by} |");
        }
        table
    }
}

/// Runs the tests of a mutant with it in force; what it survives with is the end of what they printed.
fn run(mutant: &Mutant) -> Result<End, String> {
    let output = tempfile::NamedTempFile::new().expect("a file for what the tests print");
    let file = output.reopen().expect("the same file");
    let mut tests = Command::new(std::env::current_exe().expect("this program"))
        .arg(&mutant.tests)
        .env(VARIABLE, &mutant.name)
        // Rows are of kernels as they are.
        .env_remove("IHIP_TEST_TABLE")
        .env("RUST_TEST_THREADS", THREADS.to_string())
        // One failing case is enough; a smaller one tells nothing about a mistake that is known.
        .env("PROPTEST_MAX_SHRINK_ITERS", "0")
        .stdin(Stdio::null())
        .stderr(file.try_clone().expect("a second handle"))
        .stdout(file)
        .spawn()
        .expect("this program again");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = tests.try_wait().expect("a child of this process") {
            break status;
        }
        if start.elapsed() > LIMIT {
            tests.kill().expect("a child of this process");
            tests.wait().expect("a child of this process");
            return Ok(End::Hung);
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let printed = std::fs::read_to_string(output.path()).expect("what the tests printed");
    let failed = printed.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    let failed: Vec<String> = failed.map(str::to_owned).collect();
    let tail = || printed.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    if printed.contains("does not compile for the host") {
        return Err(format!("it is no C++ any more:\n{}", tail()));
    }
    if status.success() || failed.is_empty() {
        return Err(format!("no test of `{}` failed ({status}):\n{}", mutant.tests, tail()));
    }
    Ok(End::Killed(failed))
}

/// Runs mutants, prints how each ended and returns that.
#[expect(clippy::print_stdout, reason = "a table of who killed what is what this is run for")]
fn kill(mutants: &[Mutant]) -> Deaths {
    let next = AtomicUsize::new(0);
    let ends: Vec<OnceLock<Result<End, String>>> = mutants.iter().map(|_| OnceLock::new()).collect();
    let work = || {
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(mutant) = mutants.get(number)
        {
            let start = Instant::now();
            let end = run(mutant);
            let seconds = start.elapsed().as_secs();
            match &end {
                Ok(End::Killed(tests)) => {
                    println!("{seconds:4} s  {}: killed by {}", mutant.name, tests.join(", "));
                }
                Ok(End::Hung) => println!("{seconds:4} s  {}: killed, it never ends", mutant.name),
                Err(_) => println!("{seconds:4} s  {}: SURVIVED", mutant.name),
            }
            ends[number].set(end).expect("a mutant is run once");
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).div_ceil(THREADS);
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    let (mut survivors, mut deaths) = (Vec::new(), Vec::new());
    for (mutant, end) in mutants.iter().zip(ends) {
        let mut death = |killed_by| deaths.push(Death { mutant: mutant.name.clone(), killed_by });
        match end.into_inner().expect("every mutant is run") {
            Ok(End::Killed(tests)) => death(tests),
            Ok(End::Hung) => death(Vec::new()),
            Err(survived) => survivors.push(format!("{}: `{}` survived: {survived}", mutant.file, mutant.name)),
        }
    }
    assert!(survivors.is_empty(), "{} of {} mutants:\n{}", survivors.len(), mutants.len(), survivors.join("\n\n"));
    Deaths { death: deaths }
}

#[test]
fn every_mutant_can_still_be_made() {
    let (mutants, texts) = (all(), texts());
    let complaints: Vec<String> = mutants.iter().filter_map(|mutant| complaint(mutant, &texts)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
    assert!(mutants.len() >= 30, "{} mutants", mutants.len());
    let names: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.name.as_str()).collect();
    assert_eq!(names.len(), mutants.len(), "two mutants have one name");
}

#[test]
fn a_mutant_that_does_not_apply_says_so() {
    let texts = texts();
    let mut mutant = all().remove(0);
    mutant.replace = "no kernel says this".to_owned();
    let complaint_of = |mutant: &Mutant| complaint(mutant, &texts).expect("a complaint");
    assert!(complaint_of(&mutant).contains("does not apply any more: no kernel with"), "{}", complaint_of(&mutant));
    mutant.replace = "const int ".to_owned();
    assert!(complaint_of(&mutant).contains("is unclear"), "{}", complaint_of(&mutant));
}

/// Where a mutant is in force already, its tests are all that is asked for.
fn is_within_a_mutant() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

#[test]
fn three_mutants_die() {
    assert!(!is_within_a_mutant(), "a mutant's tests would run mutants");
    let quick =
        ["a tie keeps one chunk too many", "a row counts the sums of other lanes only", "a group is not waited for"];
    let mutants: Vec<Mutant> = all().into_iter().filter(|mutant| quick.contains(&mutant.name.as_str())).collect();
    assert_eq!(mutants.len(), quick.len());
    kill(&mutants);
}

#[test]
#[ignore = "takes minutes: every mutant has a run of its tests"]
fn every_mutant_dies() {
    let deaths = kill(&all());
    if let Some(folder) = std::env::var_os("IHIP_TEST_TABLE") {
        let file = Path::new(&folder).join("mutants.toml");
        let text = toml::to_string(&deaths).expect("names are plain");
        std::fs::write(&file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// Who killed each, in a run of all that are there now.
#[test]
fn the_mutants_of_the_book_are_those_of_a_run() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/proof/mutants.toml");
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let deaths: Deaths = toml::from_str(&text).expect("a list of deaths");
    let died: Vec<&str> = deaths.death.iter().map(|death| death.mutant.as_str()).collect();
    let mutants = all();
    let mutants: Vec<&str> = mutants.iter().map(|mutant| mutant.name.as_str()).collect();
    assert_eq!(died, mutants, "run them all with IHIP_TEST_TABLE=fixtures/proof");
    page::assert_table(&deaths.to_markdown());
}
