//! Everything that can be wrong with a directory, a file or a neighbour.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{CacheKey, Counts, CubinStore, Entry, Rejection, Secret, StoreError};
use crate::jit::Resources;

const CAPACITY: u64 = 1 << 20;

fn entry(text: &str) -> Entry {
    Entry {
        key: CacheKey::new(text, &["--std=c++17".to_owned()], "sm_90", (13, 0)),
        architecture: "sm_90".to_owned(),
        kernel: "ihip_paper3k_s0_scan".to_owned(),
        nvrtc: (13, 0),
        resources: Resources { registers: 64, shared_bytes: 1024, ..Resources::default() },
        image: text.bytes().cycle().take(300).collect(),
    }
}

fn store(directory: &TempDir) -> CubinStore {
    CubinStore::open(&directory.path().join("cubins"), CAPACITY, None).expect("an empty directory is a store")
}

fn only_file(store: &CubinStore) -> std::path::PathBuf {
    let mut files = fs::read_dir(store.directory()).unwrap().map(|item| item.unwrap().path());
    let file = files.next().expect("one entry");
    assert_eq!(files.next(), None);
    file
}

#[test]
fn what_was_put_is_got() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let entry = entry("text");
    assert_eq!(store.get(&entry.key), None);
    store.put(&entry);
    assert_eq!(store.get(&entry.key), Some(entry));
    assert_eq!(store.counts(), Counts { hits: 1, misses: 1, rejected: 0, unwritten: 0 });
}

#[test]
fn directory_and_entries_are_closed_to_others() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    store.put(&entry("text"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(store.directory()), 0o700);
    assert_eq!(mode(&only_file(&store)), 0o600);
}

#[test]
fn no_flipped_byte_is_ever_loaded() {
    let entry = entry("text");
    let sound = entry.encode(None);
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        assert!(Entry::decode(&bytes, &entry.key, None).is_err(), "flipped byte {at} was believed");
    }
}

#[test]
fn no_truncated_or_lengthened_file_is_ever_loaded() {
    let entry = entry("text");
    let mut bytes = entry.encode(None);
    for length in 0..bytes.len() {
        assert!(Entry::decode(&bytes[..length], &entry.key, None).is_err(), "{length} bytes were believed");
    }
    bytes.push(0);
    assert_eq!(Entry::decode(&bytes, &entry.key, None), Err(Rejection::TrailingBytes { bytes: 1 }));
}

#[test]
fn a_length_of_any_size_allocates_nothing() {
    let entry = entry("text");
    let mut bytes = entry.encode(None);
    bytes[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    let length = bytes.len();
    assert_eq!(Entry::decode(&bytes, &entry.key, None), Err(Rejection::Truncated { length }));
}

#[test]
fn an_entry_under_another_name_is_not_loaded() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let (one, other) = (entry("one"), entry("other"));
    store.put(&one);
    fs::rename(only_file(&store), store.directory().join(format!("{}.cubin", other.key))).unwrap();
    assert_eq!(store.get(&other.key), None);
    assert_eq!(store.counts().rejected, 1);
}

#[test]
fn a_foreign_file_is_compiled_again_and_replaced() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let entry = entry("text");
    for content in [&b""[..], b"\x7fELF", &[0; 4096]] {
        fs::write(store.directory().join(format!("{}.cubin", entry.key)), content).unwrap();
        assert_eq!(store.get(&entry.key), None);
    }
    store.put(&entry);
    assert!(store.get(&entry.key).is_some());
}

#[test]
fn a_link_in_place_of_an_entry_is_not_followed() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let entry = entry("text");
    let elsewhere = directory.path().join("elsewhere");
    fs::write(&elsewhere, entry.encode(None)).unwrap();
    symlink(&elsewhere, store.directory().join(format!("{}.cubin", entry.key))).unwrap();
    assert_eq!(store.get(&entry.key), None);
}

#[test]
fn a_linked_a_writable_and_a_false_directory_are_refused() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    let open = |name: &str| CubinStore::open(&at(name), CAPACITY, None);

    fs::create_dir(at("real")).unwrap();
    symlink(at("real"), at("link")).unwrap();
    assert!(matches!(open("link"), Err(StoreError::Link { .. })));

    for mode in [0o770, 0o707, 0o777] {
        fs::DirBuilder::new().mode(0o700).create(at("open")).unwrap();
        fs::set_permissions(at("open"), fs::Permissions::from_mode(mode)).unwrap();
        match open("open") {
            Err(StoreError::OpenToOthers { mode: seen, .. }) => assert_eq!(seen, mode),
            other => panic!("mode {mode:o}: {other:?}"),
        }
        fs::remove_dir(at("open")).unwrap();
    }

    fs::write(at("file"), "").unwrap();
    assert!(matches!(open("file"), Err(StoreError::NotADirectory { .. } | StoreError::Io { .. })));
}

#[test]
fn another_users_directory_is_refused() {
    // Root can give a directory away; for anyone else /proc/1 is one that belongs to root.
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cubins");
    fs::create_dir(&path).unwrap();
    let foreign = if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        path
    } else {
        "/proc/1".into()
    };
    assert!(matches!(CubinStore::open(&foreign, CAPACITY, None), Err(StoreError::OtherOwner { .. })));
}

#[test]
fn another_users_secret_is_refused() {
    // Root can give a file away; for anyone else /etc/passwd is one that belongs to root.
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("secret");
    fs::write(&path, "sixteen bytes and more").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Secret::read(&path).is_ok());
    let foreign = if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        path
    } else {
        "/etc/passwd".into()
    };
    assert!(matches!(Secret::read(&foreign), Err(StoreError::OtherOwner { .. })));
}

#[test]
fn a_directory_that_cannot_be_written_only_costs_the_cache() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    fs::remove_dir(store.directory()).unwrap();
    let entry = entry("text");
    store.put(&entry);
    assert_eq!(store.get(&entry.key), None);
    assert_eq!(store.counts(), Counts { hits: 0, misses: 1, rejected: 0, unwritten: 1 });
}

#[test]
fn the_least_recently_used_entries_go_first() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cubins");
    let entries: Vec<Entry> = (0..6).map(|number| entry(&number.to_string())).collect();
    let size = entries[0].encode(None).len() as u64;
    let store = CubinStore::open(&path, 4 * size, None).unwrap();
    for (age, entry) in entries[..4].iter().enumerate() {
        store.put(entry);
        let file = fs::File::options().write(true).open(path.join(format!("{}.cubin", entry.key))).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000 - age as u64)).unwrap();
    }
    assert!(store.get(&entries[0].key).is_some(), "a use that makes it the most recent");
    store.put(&entries[4]);
    store.put(&entries[5]);
    let kept: Vec<bool> = entries.iter().map(|entry| store.get(&entry.key).is_some()).collect();
    assert_eq!(kept, [true, false, false, true, true, true]);
}

#[test]
fn only_a_signed_entry_passes_where_there_is_a_secret() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cubins");
    let open = |secret: Option<&[u8]>| CubinStore::open(&path, CAPACITY, secret.map(Secret::new)).unwrap();
    let (mine, theirs) = (open(Some(b"a secret of mine")), open(Some(b"a secret of theirs")));
    let entry = entry("text");
    for (writer, readers) in
        [(&mine, [true, false, false]), (&theirs, [false, true, false]), (&open(None), [false, false, true])]
    {
        writer.put(&entry);
        let found = [&mine, &theirs, &open(None)].map(|reader| reader.get(&entry.key).is_some());
        assert_eq!(found, readers);
    }
}

#[test]
fn a_secret_is_read_only_from_a_file_that_is_closed_to_others() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("secret");
    fs::write(&path, "sixteen bytes or more").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(Secret::read(&path), Err(StoreError::OpenToOthers { mode: 0o644, .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Secret::read(&path).is_ok());
    fs::write(&path, "short").unwrap();
    assert!(matches!(Secret::read(&path), Err(StoreError::ShortSecret { bytes: 5, .. })));
}

#[test]
fn listing_shows_and_clearing_removes_only_what_is_the_caches() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    store.put(&entry("one"));
    store.put(&entry("two"));
    fs::write(store.directory().join("note.txt"), "mine").unwrap();
    fs::write(store.directory().join(".new-killed"), "half").unwrap();
    let listed = store.list();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|item| item.entry.is_ok()));
    assert_eq!(store.clear().unwrap().0, 3);
    assert_eq!(only_file(&store).file_name().unwrap(), "note.txt");
}

#[test]
fn many_writers_and_readers_never_see_a_torn_entry() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cubins");
    thread::scope(|scope| {
        for worker in 0..16 {
            let path = &path;
            scope.spawn(move || {
                let store = CubinStore::open(path, CAPACITY, None).unwrap();
                for round in 0..20 {
                    let entry = entry(&((worker + round) % 5).to_string());
                    if let Some(found) = store.get(&entry.key) {
                        assert_eq!(found, entry);
                    }
                    store.put(&entry);
                }
                let Counts { rejected, unwritten, .. } = store.counts();
                assert_eq!((rejected, unwritten), (0, 0));
            });
        }
    });
}

/// A store with one file, which every case writes anew.
fn scratch() -> &'static (TempDir, CubinStore) {
    static STORE: OnceLock<(TempDir, CubinStore)> = OnceLock::new();
    STORE.get_or_init(|| {
        let directory = TempDir::new().unwrap();
        let store = store(&directory);
        (directory, store)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cuts, flips, swaps and insertions at random places of the file: none of it is ever loaded.
    #[test]
    fn no_random_corruption_of_the_store_is_ever_loaded(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..4),
    ) {
        let entry = entry("text");
        let sound = entry.encode(None);
        let mut bytes = sound.clone();
        for (place, byte, kind) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = place.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        prop_assume!(bytes != sound);
        let (_, store) = scratch();
        fs::write(store.directory().join(format!("{}.cubin", entry.key)), &bytes).unwrap();
        let rejected = store.counts().rejected;
        prop_assert_eq!(store.get(&entry.key), None);
        prop_assert_eq!(store.counts().rejected, rejected + 1);
    }
}
