//! The store of cubins behind the compiler: whatever becomes of its files, what runs is what the text says.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;

use ihip_runtime::jit::cache::{CacheKey, CubinStore, Entry, Secret};
use ihip_runtime::jit::{Architecture, Compilations, Compiler, Cubin, JitError, Nvrtc};
use ihip_tests::support::nvrtc::nvrtc;
use tempfile::TempDir;

const TEXT: &str = "extern \"C\" __global__ void twice(float* a) { a[threadIdx.x] *= 2; }\n";
const ROOM: u64 = 1 << 20;

fn store(folder: &TempDir) -> CubinStore {
    CubinStore::open(&folder.path().join("cubins"), ROOM, None).expect("a folder of this user's")
}

fn compiler(folder: &TempDir, architecture: Architecture) -> Compiler {
    Compiler::new(nvrtc().clone(), architecture, Some(store(folder)))
}

/// The cubin that a fresh compiler gives, and where it came from.
fn get(folder: &TempDir) -> (Arc<Cubin>, Compilations) {
    let compiler = compiler(folder, Architecture::SM_90);
    let cubin = compiler.cubin("twice", TEXT).unwrap_or_else(|error| panic!("{error}"));
    (cubin, compiler.compilations())
}

fn key(architecture: Architecture, version: (u32, u32)) -> CacheKey {
    CacheKey::new(TEXT, &Nvrtc::options(architecture), &architecture.to_string(), version)
}

fn file(folder: &TempDir, key: &CacheKey) -> PathBuf {
    folder.path().join("cubins").join(format!("{key}.cubin"))
}

const COMPILED: Compilations = Compilations { compiled: 1, loaded: 0 };
const LOADED: Compilations = Compilations { compiled: 0, loaded: 1 };

#[test]
fn whatever_is_wrong_with_an_entry_it_is_compiled_again_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (sound, first) = get(&folder);
    assert_eq!(first, COMPILED);
    let path = file(&folder, &key(Architecture::SM_90, nvrtc().version()));
    let content = fs::read(&path).expect("the entry is there");

    // A whole and sound entry of another architecture, of another compiler's version, and of another author.
    let sm_80 = nvrtc().compile("twice", TEXT, Architecture::SM_80).unwrap();
    let elsewhere = |key: CacheKey, architecture: &str, nvrtc: (u32, u32), secret: Option<&Secret>| {
        let (kernel, architecture) = ("twice".to_owned(), architecture.to_owned());
        let entry = Entry { key, architecture, kernel, nvrtc, resources: sm_80.resources, image: sm_80.image.clone() };
        entry.encode(secret)
    };
    let (own, version) = (key(Architecture::SM_90, nvrtc().version()), nvrtc().version());
    let mut flipped = content.clone();
    flipped[content.len() / 2] ^= 1;
    let faults: [(&str, Vec<u8>); 7] = [
        ("a flipped byte", flipped),
        ("a truncated file", content[..content.len() - 1].to_vec()),
        ("an empty file", Vec::new()),
        ("a foreign file", b"\x7fELF and so on".to_vec()),
        ("another architecture", elsewhere(key(Architecture::SM_80, version), "sm_80", version, None)),
        ("another version", elsewhere(key(Architecture::SM_90, (1, 0)), "sm_90", (1, 0), None)),
        ("another author", elsewhere(own, "sm_90", version, Some(&Secret::new(b"a secret of theirs")))),
    ];
    for (fault, bytes) in faults {
        fs::write(&path, bytes).unwrap();
        assert_eq!(get(&folder), (sound.clone(), COMPILED), "{fault}");
        assert_eq!(get(&folder), (sound.clone(), LOADED), "{fault}: the replacement");
    }
}

#[test]
fn an_entry_of_another_version_of_the_compiler_is_ignored_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (major, minor) = nvrtc().version();
    let other = (major, minor + 1);
    let other_key = key(Architecture::SM_90, other);
    let image = b"not what this version would have made".to_vec();
    let (architecture, kernel) = ("sm_90".to_owned(), "twice".to_owned());
    let entry = Entry { key: other_key, architecture, kernel, nvrtc: other, resources: Default::default(), image };
    store(&folder).put(&entry);
    let (cubin, from) = get(&folder);
    assert_eq!(from, COMPILED);
    assert_ne!(cubin.image, entry.image);
    assert_eq!(store(&folder).get(&other_key), Some(entry));
}

#[test]
fn threads_that_ask_together_wait_for_one_compilation() {
    let folder = tempfile::tempdir().unwrap();
    let (compiler, together) = (compiler(&folder, Architecture::SM_90), Barrier::new(16));
    let cubins: Vec<Arc<Cubin>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    compiler.cubin("twice", TEXT).unwrap_or_else(|error| panic!("{error}"))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it compiles")).collect()
    });
    assert!(cubins.iter().all(|cubin| Arc::ptr_eq(cubin, &cubins[0])));
    assert_eq!(compiler.compilations(), COMPILED);
}

#[test]
fn what_was_compiled_for_the_very_chip_is_loaded_on_it_and_by_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let hopper = || compiler(&folder, Architecture::SM_90);
    let specific = compiler(&folder, "sm_90a".parse().unwrap());
    let ahead = specific.cubin("twice", TEXT).unwrap();
    let gpu = hopper().for_gpu();
    assert_eq!(gpu.cubin("twice", TEXT).unwrap(), ahead);
    assert_eq!(gpu.compilations(), LOADED);
    // Who asks what sm_90 itself takes is not told what sm_90a does.
    let plain = hopper();
    plain.cubin("twice", TEXT).unwrap();
    assert_eq!(plain.compilations(), COMPILED);
}

#[test]
fn a_kernel_that_may_not_be_compiled_is_named_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let without = || Compiler::without_nvrtc(Architecture::SM_90, Some(store(&folder)));
    let error = without().cubin("twice", TEXT).unwrap_err();
    assert!(matches!(*error, JitError::Disabled { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "IHIP_NO_JIT is set and twice for sm_90 is not in the cache: compile it ahead with \
         `ihip kernels compile --arch sm_90` and the --model, --kv-type, --dense-path and IHIP_TUNING of the run, or unset it"
    );
    get(&folder);
    assert!(without().cubin("twice", TEXT).is_ok());
}

#[test]
fn where_nothing_may_be_compiled_the_newest_version_that_has_the_kernel_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let put = |version: (u32, u32), image: &[u8]| {
        let key = key(Architecture::SM_90, version);
        let (architecture, kernel, image) = ("sm_90".to_owned(), "twice".to_owned(), image.to_vec());
        let entry = Entry { key, architecture, kernel, nvrtc: version, resources: Default::default(), image };
        store(&folder).put(&entry);
        key
    };
    let without = || Compiler::without_nvrtc(Architecture::SM_90, Some(store(&folder)));
    put((12, 9), b"older");
    let newest = put((13, 1), b"newer");
    assert_eq!(store(&folder).versions(), [(13, 1), (12, 9)]);
    assert_eq!(without().nvrtc_version(), (13, 1));
    assert_eq!(without().cubin("twice", TEXT).unwrap().image, b"newer");
    // A damaged entry is passed over like one that is not there.
    let path = file(&folder, &newest);
    let mut damaged = fs::read(&path).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, damaged).unwrap();
    assert_eq!(without().cubin("twice", TEXT).unwrap().image, b"older");
}

#[test]
fn a_store_that_goes_away_only_costs_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = compiler(&folder, Architecture::SM_90);
    fs::remove_dir(Path::new(&folder.path().join("cubins"))).unwrap();
    assert!(compiler.cubin("twice", TEXT).is_ok());
    assert_eq!(compiler.store().map(|store| store.counts().unwritten), Some(1));
}
