//! Runs the command line, in a program that declares a pipeline of its own.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

/// What a command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output of a command that is expected to succeed and to complain of nothing.
    ///
    /// # Panics
    /// Where it failed, complained, or wrote something else than text.
    #[must_use]
    pub fn text(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "the command should succeed in silence");
        String::from_utf8(self.stdout).expect("standard output is UTF-8")
    }

    /// The message of a command that is expected to be refused: exit code 2, nothing on standard output, at most
    /// twelve lines.
    ///
    /// # Panics
    /// Where it was not.
    #[must_use]
    pub fn refusal(self) -> String {
        assert_eq!(self.code, Some(2), "refused with 2: {self:?}");
        assert!(self.stdout.is_empty(), "nothing on standard output: {self:?}");
        let lines = self.stderr.lines().count();
        assert!((1..=12).contains(&lines), "{lines} lines: {}", self.stderr);
        self.stderr
    }
}

/// The program with `arguments`, nothing connected yet.
#[must_use]
pub fn command<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    // Help is wrapped to the terminal's width, or this.
    command.env_remove("COLUMNS");
    command
}

/// Runs the program to its end with `input` on standard input.
///
/// # Panics
/// Where it cannot be started.
#[must_use]
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A], input: &[u8]) -> Outcome {
    let mut command = command(program, arguments);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let output = thread::scope(|scope| {
        // A program that refuses its arguments does not read: a closed pipe here is its right.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("the program ends")
    });
    Outcome {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
    }
}
