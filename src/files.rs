//! Files written whole: to a temporary file beside the target, flushed to the disk, then renamed. A reader, or
//! a run that goes on after a crash, sees the old file or the new one and nothing between.

use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// End of the names of files that are not finished; [`remove_unfinished`] deletes them.
const UNFINISHED: &str = ".tmp";

/// Refuses an output that is a folder, is one of the files that are read, is there already and not to be replaced, or
/// has no folder to be in: before hours of work, not after. `flag` is the option that named it.
///
/// # Errors
/// [`Error::Usage`] that says what to name instead; [`Error::Io`] where there is no such folder.
pub fn check_out(flag: &str, out: &Path, inputs: &[&Path], overwrite: bool) -> Result<()> {
    let shown = out.display();
    if out.file_name().is_none() || out.is_dir() {
        return Err(Error::Usage(format!("{flag} {shown} is a folder; name a file")));
    }
    let same = |path: &Path| match (path.canonicalize(), out.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if inputs.iter().any(|path| same(path)) {
        return Err(Error::Usage(format!("{flag} {shown} is an input as well; name another file")));
    }
    if out.exists() && !overwrite {
        return Err(Error::Usage(format!(
            "{flag} {shown} is there already; name another file, or replace it with --overwrite"
        )));
    }
    match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(Error::io(out, "write")(std::io::ErrorKind::NotFound.into()))
        }
        _ => Ok(()),
    }
}

/// Writes `bytes` to `path`, whole or not at all.
///
/// # Errors
/// [`Error::Io`] naming the target; nothing is left behind.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_name(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    finish(path, &temporary, write())
}

/// Lets `write` make the file at a temporary name and puts it at `path` once it is done: whole or not at all.
///
/// # Errors
/// What `write` gives; [`Error::Io`] naming the target. Nothing is left behind.
pub fn write_whole_with(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = temporary_name(path);
    if let Err(error) = write(&temporary) {
        // Best effort: the error that matters is the one reported.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    finish(path, &temporary, File::open(&temporary).and_then(|file| file.sync_all()))
}

/// A tensor of 4-byte values to be stored.
pub struct Tensor<'a> {
    /// Name in the file.
    pub name: String,
    /// float32 or u32.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Little-endian values.
    pub bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// A float32 tensor.
    pub fn f32(name: String, shape: Vec<usize>, values: &'a [f32]) -> Self {
        Self { name, dtype: Dtype::F32, shape, bytes: bytemuck::cast_slice(values) }
    }

    /// A u32 tensor.
    pub fn u32(name: String, shape: Vec<usize>, values: &'a [u32]) -> Self {
        Self { name, dtype: Dtype::U32, shape, bytes: bytemuck::cast_slice(values) }
    }
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a safetensors file, whole or not at all. `key`: `value` is its metadata; one entry only, because the
/// format's map has no order and the same content must give the same bytes.
///
/// # Errors
/// As [`write_whole`].
pub fn write_safetensors(path: &Path, tensors: &[Tensor<'_>], key: &str, value: String) -> Result<()> {
    let temporary = temporary_name(path);
    let metadata = HashMap::from([(key.to_owned(), value)]);
    let named = tensors.iter().map(|t| (t.name.as_str(), t));
    // safetensors makes a file that only its owner may read; a plain new file has the user's usual mode.
    let mode = File::create(&temporary).and_then(|file| file.metadata()).map_err(Error::io(path, "write"))?;
    let written = safetensors::serialize_to_file(named, Some(metadata), &temporary);
    let synced = match written {
        Ok(()) => fs::set_permissions(&temporary, mode.permissions())
            .and_then(|()| File::open(&temporary))
            .and_then(|file| file.sync_all()),
        Err(safetensors::SafeTensorError::IoError(e)) => Err(e),
        Err(other) => Err(std::io::Error::other(other.to_string())),
    };
    finish(path, &temporary, synced)
}

fn finish(path: &Path, temporary: &Path, written: std::io::Result<()>) -> Result<()> {
    let renamed = written.and_then(|()| fs::rename(temporary, path));
    let done = renamed.and_then(|()| sync_folder(path));
    if done.is_err() {
        // Best effort: the error that matters is the one reported.
        let _ = fs::remove_file(temporary);
    }
    done.map_err(Error::io(path, "write"))
}

/// Makes a second name for a file, replacing what had that name, without copying where the system can link.
///
/// # Errors
/// As [`write_whole`].
pub fn link_whole(from: &Path, to: &Path) -> Result<()> {
    let temporary = temporary_name(to);
    let _ = fs::remove_file(&temporary);
    let linked = fs::hard_link(from, &temporary)
        .or_else(|_| fs::copy(from, &temporary).and_then(|_| File::open(&temporary)?.sync_all()));
    finish(to, &temporary, linked)?;
    // Renaming a link onto another link to the same file does nothing, and leaves the first one there.
    let _ = fs::remove_file(&temporary);
    Ok(())
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(UNFINISHED);
    path.with_file_name(name)
}

/// Makes the rename itself last: the folder's entry is on the disk after this.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Whether a file of this name was never finished.
pub fn is_unfinished(name: &str) -> bool {
    // The second kind is safetensors' own temporary file.
    name.ends_with(UNFINISHED) || name.starts_with(".tmp")
}

/// Deletes files in `folder` that a killed process left unfinished.
///
/// # Errors
/// A folder that cannot be listed.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_unfinished(&name) {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_whole(&path, b"old").unwrap();
        // A folder in the place of the temporary file makes creating it fail, even for root.
        fs::create_dir(folder.path().join("a.txt.tmp")).unwrap();
        let error = write_whole(&path, b"new").unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains("cannot write"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn an_output_without_a_folder_is_refused_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_out("--out", &folder.path().join("no/a.tsv"), &[], true).unwrap_err();
        assert!(error.exit_status() == 1 && error.to_string().contains("no/a.tsv"), "{error}");
        check_out("--out", &folder.path().join("a.tsv"), &[], false).unwrap();
        check_out("--out", Path::new("a file that is nowhere.tsv"), &[], false).unwrap();
    }

    #[test]
    fn linking_replaces_an_older_file_of_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        write_whole(&a, b"one").unwrap();
        write_whole(&b, b"two").unwrap();
        link_whole(&a, &b).unwrap();
        link_whole(&a, &b).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "linking twice left a temporary file");
        write_whole(&a, b"three").unwrap();
        assert_eq!(fs::read(&b).unwrap(), b"one");
        fs::write(folder.path().join("x.tmp"), b"").unwrap();
        remove_unfinished(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
