//! `IHIP_KERNEL_OVERRIDE`: hand-edited text in the place of what was generated.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::cache::{StoreError, own_directory};
use super::library;

/// Largest text that is read, in bytes.
const LARGEST_TEXT: u64 = 4 << 20;

/// A folder of kernels' texts, each in `<kernel name>.cu`, that are compiled instead of the generated ones.
///
/// The text must keep the entry's name, its arguments, and the threads and dynamic shared memory of a launch. Whatever
/// lies in the folder becomes device code: it is used only where nobody else can write to it.
#[derive(Clone, Debug)]
pub struct Overrides {
    folder: PathBuf,
}

impl Overrides {
    /// The folder that the environment names, if it names one.
    ///
    /// # Errors
    /// Those of [`Overrides::open`].
    pub fn from_environment() -> Result<Option<Self>, StoreError> {
        library::variable("IHIP_KERNEL_OVERRIDE").map(|folder| Self::open(Path::new(&folder))).transpose()
    }

    /// The folder at `folder`.
    ///
    /// # Errors
    /// [`StoreError`] where it is missing, a link, another user's, or writable by others.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        own_directory(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The text that takes the place of `kernel`'s, if there is one; standard error is told.
    ///
    /// # Errors
    /// [`StoreError`] where there is a file that may not be used, or cannot be read.
    pub fn text(&self, kernel: &str) -> Result<Option<String>, StoreError> {
        let path = self.folder.join(format!("{kernel}.cu"));
        let Some(text) = read(&path)? else { return Ok(None) };
        // Whoever closed standard error does not want to know.
        let _ = writeln!(io::stderr(), "note: {} takes the place of the generated text of {kernel}", path.display());
        Ok(Some(text))
    }
}

/// The text of a file that only this user can write to; `None` where there is none.
fn read(path: &Path) -> Result<Option<String>, StoreError> {
    let here = || path.to_owned();
    let io = |source| StoreError::Io { path: here(), source };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(StoreError::Link { path: here() });
        }
        Err(error) => return Err(io(error)),
    };
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    let (user, mode) = (rustix::process::geteuid().as_raw(), metadata.mode() & 0o777);
    if metadata.uid() != user {
        return Err(StoreError::OtherOwner { path: here(), owner: metadata.uid(), user });
    }
    if mode & 0o022 != 0 {
        return Err(StoreError::OpenToOthers { path: here(), mode });
    }
    if metadata.len() > LARGEST_TEXT {
        return Err(io(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {LARGEST_TEXT} bytes"))));
    }
    let mut text = String::new();
    (&mut file).take(LARGEST_TEXT).read_to_string(&mut text).map_err(io)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder_with(text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernel.cu"), text).unwrap();
        fs::set_permissions(folder.path().join("kernel.cu"), Permissions::from_mode(0o644)).unwrap();
        folder
    }

    #[test]
    fn a_file_named_after_a_kernel_takes_the_place_of_its_text_and_no_other() {
        let folder = folder_with("// mine");
        let overrides = Overrides::open(folder.path()).unwrap();
        assert_eq!(overrides.text("kernel").unwrap().as_deref(), Some("// mine"));
        assert_eq!(overrides.text("other").unwrap(), None);
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = folder_with("");
        for mode in [0o720, 0o702, 0o777] {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            let error = Overrides::open(folder.path()).unwrap_err();
            assert!(matches!(error, StoreError::OpenToOthers { .. }), "{mode:o}: {error}");
        }
    }

    #[test]
    fn a_file_that_others_can_write_to_is_refused() {
        let folder = folder_with("");
        let overrides = Overrides::open(folder.path()).unwrap();
        for mode in [0o620, 0o602] {
            fs::set_permissions(folder.path().join("kernel.cu"), Permissions::from_mode(mode)).unwrap();
            let error = overrides.text("kernel").unwrap_err();
            assert!(matches!(error, StoreError::OpenToOthers { .. }), "{mode:o}: {error}");
        }
    }

    #[test]
    fn links_missing_folders_and_what_is_no_file_are_refused() {
        let folder = folder_with("// mine");
        let overrides = Overrides::open(folder.path()).unwrap();
        symlink(folder.path().join("kernel.cu"), folder.path().join("linked.cu")).unwrap();
        assert!(matches!(overrides.text("linked"), Err(StoreError::Link { .. })));
        fs::create_dir(folder.path().join("folder.cu")).unwrap();
        assert!(matches!(overrides.text("folder"), Err(StoreError::Io { .. })));
        let link = folder.path().join("link");
        symlink(folder.path(), &link).unwrap();
        assert!(matches!(Overrides::open(&link), Err(StoreError::Link { .. })));
        assert!(matches!(Overrides::open(&folder.path().join("none")), Err(StoreError::Io { .. })));
        assert!(matches!(Overrides::open(&folder.path().join("kernel.cu")), Err(StoreError::NotADirectory { .. })));
    }
}
