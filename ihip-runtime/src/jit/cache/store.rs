//! The directory of entries.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::OFlags;
use thiserror::Error;

use super::{CacheKey, Entry, Rejection, Secret};

/// Largest file that is read as an entry, in bytes.
const LARGEST_ENTRY: u64 = 64 << 20;
/// Bytes of a file that are read for what stands before the cubin: names are shorter.
const LONGEST_HEAD: u64 = 4096;
/// Ending of an entry's file name.
const ENDING: &str = "cubin";

/// Why a directory, or a file in it, is not used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The path is a symbolic link.
    #[error("{} is a symbolic link: name what it points to", path.display())]
    Link {
        /// The path.
        path: PathBuf,
    },
    /// The path is no directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It belongs to someone else, who could put device code into it.
    #[error("{} belongs to user {owner}, and this is user {user}: use one of your own", path.display())]
    OtherOwner {
        /// The path.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs.
        user: u32,
    },
    /// Others could write to it, or read the secret.
    #[error("{} is open to others (mode {mode:o}): chmod go-rwx it", path.display())]
    OpenToOthers {
        /// The path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file is too short.
    #[error("{} holds {bytes} bytes, and a secret has at least {shortest}", path.display())]
    ShortSecret {
        /// The path.
        path: PathBuf,
        /// Bytes in it.
        bytes: usize,
        /// Bytes there must be.
        shortest: usize,
    },
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Entries in one directory of this user's, up to a number of bytes, least recently used first to go.
#[derive(Debug)]
pub struct CubinStore {
    directory: PathBuf,
    capacity: u64,
    secret: Option<Secret>,
    hits: AtomicU64,
    misses: AtomicU64,
    rejected: AtomicU64,
    unwritten: AtomicU64,
}

/// What a store has seen since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries found and whole.
    pub hits: u64,
    /// Keys without an entry.
    pub misses: u64,
    /// Entries that were there and not used.
    pub rejected: u64,
    /// Entries that could not be written.
    pub unwritten: u64,
}

/// An entry as a listing shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its key.
    pub key: CacheKey,
    /// Bytes of the file.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
    /// The entry, or why it would not be used.
    pub entry: Result<Entry, Rejection>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl CubinStore {
    /// Opens `directory`, made with mode 0700 where it is not there, for at most `capacity` bytes of entries.
    ///
    /// # Errors
    /// [`StoreError`] where the directory is a link, another user's, or writable by others, or cannot be made.
    pub fn open(directory: &Path, capacity: u64, secret: Option<Secret>) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).or_else(|error| {
            match error.kind() {
                // A link to nowhere, or a file: the checks below say which.
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(io(error)),
            }
        })?;
        own_directory(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            capacity,
            secret,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
        })
    }

    /// Where the entries are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What was seen so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            hits: read(&self.hits),
            misses: read(&self.misses),
            rejected: read(&self.rejected),
            unwritten: read(&self.unwritten),
        }
    }

    /// The entry of `key`, if there is one and every byte of it is sound. Never fails: the way out is to compile.
    #[must_use]
    pub fn get(&self, key: &CacheKey) -> Option<Entry> {
        let path = self.path(key);
        let Ok((bytes, file)) = read_entry(&path) else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let Ok(entry) = Entry::decode(&bytes, key, self.secret.as_ref()) else {
            self.rejected.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        // The time of use is what eviction goes by; where it cannot be written, an older one does.
        let _ = file.set_modified(SystemTime::now());
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(entry)
    }

    /// Keeps `entry` for later runs and makes room for it. Never fails: what cannot be written is compiled again.
    pub fn put(&self, entry: &Entry) {
        if self.write(entry).is_err() {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        }
        self.evict();
    }

    fn write(&self, entry: &Entry) -> io::Result<()> {
        // Readable and writable by this user alone, which is tempfile's own mode.
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.directory)?;
        file.write_all(&entry.encode(self.secret.as_ref()))?;
        file.as_file().sync_all()?;
        file.persist(self.path(&entry.key))?;
        Ok(())
    }

    /// Removes the least recently used entries until the rest fits.
    fn evict(&self) {
        let mut files = self.files();
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        files.sort_by_key(|file| file.used);
        for file in files {
            if total <= self.capacity {
                return;
            }
            if fs::remove_file(self.path(&file.key)).is_ok() {
                total -= file.bytes;
            }
        }
    }

    /// Every entry, last used first.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let mut files = self.files();
        files.sort_by_key(|file| std::cmp::Reverse(file.used));
        files
            .into_iter()
            .filter_map(|FileOf { key, bytes, used }| {
                let (content, _) = read_entry(&self.path(&key)).ok()?;
                Some(Listed { key, bytes, used, entry: Entry::decode(&content, &key, self.secret.as_ref()) })
            })
            .collect()
    }

    /// Versions of NVRTC that entries say they were compiled by, the newest first: where to look, not what to load.
    #[must_use]
    pub fn versions(&self) -> Vec<(u32, u32)> {
        let version = |file: &FileOf| {
            let mut head = Vec::new();
            open_entry(&self.path(&file.key)).ok()?.take(LONGEST_HEAD).read_to_end(&mut head).ok()?;
            Entry::stated_nvrtc(&head).ok()
        };
        let mut versions: Vec<_> = self.files().iter().filter_map(version).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.dedup();
        versions
    }

    /// Removes every entry, and what a killed process left half-written; returns how many files and bytes went.
    ///
    /// # Errors
    /// [`StoreError::Io`] at the first file that cannot be removed.
    pub fn clear(&self) -> Result<(usize, u64), StoreError> {
        let io = |path: &Path, source| StoreError::Io { path: path.to_owned(), source };
        let (mut files, mut bytes) = (0, 0);
        for item in fs::read_dir(&self.directory).map_err(|error| io(&self.directory, error))? {
            let path = item.map_err(|error| io(&self.directory, error))?.path();
            let ours = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(".new-") || key_of(name).is_some());
            if ours {
                bytes += fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                fs::remove_file(&path).map_err(|error| io(&path, error))?;
                files += 1;
            }
        }
        Ok((files, bytes))
    }

    fn path(&self, key: &CacheKey) -> PathBuf {
        self.directory.join(format!("{key}.{ENDING}"))
    }

    fn files(&self) -> Vec<FileOf> {
        let Ok(items) = fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        items
            .filter_map(|item| {
                let item = item.ok()?;
                let key = key_of(item.file_name().to_str()?)?;
                let metadata = item.metadata().ok()?;
                Some(FileOf { key, bytes: metadata.len(), used: metadata.modified().ok()? })
            })
            .collect()
    }
}

/// Checks that `directory` is this user's and that nobody else can write to it.
///
/// # Errors
/// [`StoreError`] where it is missing, a link, no directory, another user's, or writable by others.
pub(in crate::jit) fn own_directory(directory: &Path) -> Result<(), StoreError> {
    let path = || directory.to_owned();
    let metadata = fs::symlink_metadata(directory).map_err(|source| StoreError::Io { path: path(), source })?;
    if metadata.is_symlink() {
        return Err(StoreError::Link { path: path() });
    }
    if !metadata.is_dir() {
        return Err(StoreError::NotADirectory { path: path() });
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(StoreError::OtherOwner { path: path(), owner: metadata.uid(), user });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(StoreError::OpenToOthers { path: path(), mode });
    }
    Ok(())
}

struct FileOf {
    key: CacheKey,
    bytes: u64,
    used: SystemTime,
}

fn key_of(name: &str) -> Option<CacheKey> {
    CacheKey::parse(name.strip_suffix(ENDING)?.strip_suffix('.')?)
}

/// Opens a file that is no link and not absurdly large.
fn open_entry(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > LARGEST_ENTRY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(file)
}

/// Reads the whole of such a file.
fn read_entry(path: &Path) -> io::Result<(Vec<u8>, File)> {
    let mut file = open_entry(path)?;
    let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0));
    (&mut file).take(LARGEST_ENTRY).read_to_end(&mut bytes)?;
    Ok((bytes, file))
}
