//! Files written whole: to a temporary file beside the target, flushed to the disk, then renamed. A reader, or
//! a run that goes on after a crash, sees the old file or the new one and nothing between. Links are followed; pipes and
//! devices are written into ([`Target`]).

mod target;

pub use target::{Target, is_stdout, resolve};

use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempPath};

/// Start and end of the names of files that are not finished. A random part between them keeps them apart from every
/// other file.
const UNFINISHED: (&str, &str) = (".sae-", ".tmp");

/// Makes files and folders with unfinished names and the mode that a plain new one has.
fn unfinished(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED.0).suffix(UNFINISHED.1).rand_bytes(8).permissions(Permissions::from_mode(mode));
    builder
}

/// A folder with an unfinished name, deleted when dropped.
///
/// # Errors
/// As the disk gives them.
pub fn temporary_folder(parent: &Path) -> io::Result<tempfile::TempDir> {
    unfinished(0o777).tempdir_in(parent)
}

/// Writes `bytes` to `path`, whole or not at all.
///
/// # Errors
/// [`Error::Io`] naming the target; nothing is left behind.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |mut file| file.write_all(bytes).map_err(Error::io(path, "write")))
}

/// Lets `write` fill a file that becomes `path` once it is done: whole or not at all. A pipe or device is filled
/// directly.
///
/// # Errors
/// What `write` gives; [`Error::Io`] naming the target. Nothing is left behind.
pub fn write_with(path: &Path, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let target = Target::find(&path.display().to_string(), path)?;
    let Target::File(place) = &target else {
        return match target.open_stream().map_err(Error::io(path, "write"))? {
            Some(stream) => write(&stream),
            None => Ok(()),
        };
    };
    let temporary = temporary_beside(place).map_err(Error::io(path, "write"))?;
    write(temporary.as_file())?;
    let (file, temporary) = temporary.into_parts();
    finish(place, temporary, file.sync_all()).map_err(Error::io(path, "write"))
}

/// As [`write_with`], for libraries that open files by name: `write` gets the path of an empty file. What is for a pipe
/// or device is written to a file in the system's temporary folder (`TMPDIR`), whose bytes are then copied.
///
/// # Errors
/// As [`write_with`].
pub fn write_by_name(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let target = Target::find(&path.display().to_string(), path)?;
    let wrong = |e: io::Error| Error::io(path, "write")(e);
    if let Target::File(place) = &target {
        let temporary = temporary_beside(place).map_err(wrong)?.into_temp_path();
        write(&temporary)?;
        let synced = File::open(&temporary).and_then(|file| file.sync_all());
        return finish(place, temporary, synced).map_err(wrong);
    }
    let folder = std::env::temp_dir();
    let temporary = unfinished(0o600).tempfile_in(&folder).map_err(Error::io(&folder, "write"))?;
    // A temporary folder that is full is not the output's fault.
    write(temporary.path()).map_err(|e| match e {
        Error::Io { action, source, .. } => Error::Io { path: folder, action, source },
        other => other,
    })?;
    let mut file = File::open(temporary.path()).map_err(Error::io(temporary.path(), "read"))?;
    let stream = target.open_stream().map_err(wrong)?;
    stream.map_or(Ok(0), |mut stream| io::copy(&mut file, &mut stream)).map(drop).map_err(wrong)
}

/// An empty file beside `place`, of the mode that the file there has.
fn temporary_beside(place: &Path) -> io::Result<NamedTempFile> {
    let temporary = unfinished(0o666).tempfile_in(folder_of(place))?;
    if let Ok(old) = fs::metadata(place) {
        temporary.as_file().set_permissions(old.permissions())?;
    }
    Ok(temporary)
}

/// A tensor to be stored.
pub struct Tensor<'a> {
    /// Name in the file.
    pub name: String,
    /// Type of the values, of whole bytes.
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

/// What a safetensors file has before its tensors' values, and where these are.
#[derive(Debug)]
pub struct Layout {
    /// The header with its length before it.
    start: Vec<u8>,
    /// Of each tensor, in the order in which they were named, the bytes between the header and its values.
    places: Vec<u64>,
    /// Bytes of all values.
    len: u64,
}

impl Layout {
    /// Of tensors by name, type and shape. The same content gives the same bytes: tensors lie by type and name,
    /// and the header's keys are in order.
    ///
    /// # Errors
    /// [`Error::Io`] naming `path`: sizes that no file has.
    pub fn new<'a>(
        path: &Path,
        tensors: &[(&str, Dtype, Vec<usize>)],
        metadata: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Result<Self> {
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self::of(tensors, metadata).map_err(Error::io(path, "write"))
    }

    fn of(tensors: &[(&str, Dtype, Vec<usize>)], metadata: HashMap<String, String>) -> io::Result<Self> {
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(tensors[i].1), tensors[i].0));
        let (mut places, mut infos, mut at) = (vec![0; tensors.len()], vec![], 0);
        for i in order {
            let (name, dtype, shape) = &tensors[i];
            let next = at + dtype.bitsize() / 8 * shape.iter().product::<usize>();
            places[i] = at as u64;
            infos.push((
                (*name).to_owned(),
                TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (at, next) },
            ));
            at = next;
        }
        let header = Metadata::new(Some(metadata), infos).map_err(io::Error::other)?;
        // This map sorts by key; the library's has another order in each process.
        let sorted: serde_json::Map<_, _> = serde_json::from_str(&serde_json::to_string(&header)?)?;
        let mut text = serde_json::to_vec(&sorted)?;
        text.resize(text.len().next_multiple_of(8), b' ');
        let start = [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat();
        Ok(Self { start, places, len: at as u64 })
    }

    /// Bytes before the values.
    pub fn start(&self) -> u64 {
        self.start.len() as u64
    }

    /// Of each tensor, in the order in which they were named, the bytes between the header and its values.
    pub fn places(&self) -> &[u64] {
        &self.places
    }
}

/// Writes a safetensors file, whole or not at all, with `key`: `value` as its metadata.
///
/// # Errors
/// As [`write_whole`].
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: &[Tensor<'_>],
    metadata: impl IntoIterator<Item = (&'a str, String)>,
) -> Result<()> {
    let named: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.clone())).collect();
    let layout = Layout::new(path, &named, metadata)?;
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| layout.places[i]);
    let mut parts =
        std::iter::once(layout.start.as_slice()).chain(order.into_iter().map(|i| tensors[i].bytes));
    write_with(path, |mut file| {
        parts.try_for_each(|part| file.write_all(part)).map_err(Error::io(path, "write"))
    })
}

/// A file that several processes fill, and that gets its name when all of them have.
pub struct Unfinished {
    temporary: NamedTempFile,
    path: PathBuf,
    place: PathBuf,
}

impl Unfinished {
    /// A file that becomes `path`, with room for all of `layout`, whose start is in it.
    ///
    /// # Errors
    /// [`Error::Io`] naming `path`; [`Error::Usage`] where it is a pipe or a device.
    pub fn new(path: &Path, layout: &Layout) -> Result<Self> {
        let Target::File(place) = Target::find(&path.display().to_string(), path)? else {
            return Err(Error::Usage(format!(
                "{} is no file, and several processes write it",
                path.display()
            )));
        };
        let make = || {
            let temporary = temporary_beside(&place)?;
            temporary.as_file().set_len(layout.start() + layout.len)?;
            temporary.as_file().write_all_at(&layout.start, 0)?;
            Ok(temporary)
        };
        let temporary = make().map_err(Error::io(path, "write"))?;
        Ok(Self { temporary, path: path.to_owned(), place })
    }

    /// Where it is until it is finished.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`] naming that.
    pub fn finish(self) -> Result<()> {
        let (file, temporary) = self.temporary.into_parts();
        finish(&self.place, temporary, file.sync_all()).map_err(Error::io(&self.path, "write"))
    }
}

/// Writes bytes at places of a file that is there, and has them on the disk. Nothing of it is read: where computers share a disk,
/// one that read beside its part what another is writing could write it back as it was.
///
/// # Errors
/// As the disk gives them.
pub fn write_parts<'a>(path: &Path, mut parts: impl Iterator<Item = (u64, &'a [u8])>) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    parts.try_for_each(|(at, bytes)| file.write_all_at(bytes, at))?;
    file.sync_all()
}

/// Longest header of a .safetensors file, as the format has it.
const LONGEST_HEADER: u64 = 100_000_000;

/// The header of a safetensors file, and how many bytes come before its values. The values are not read.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] where it is no such file, or damaged.
pub fn safetensors_header(path: &Path, mut file: &File) -> Result<(Metadata, u64)> {
    let wrong = |why: String| {
        Error::data(path, "", format!("has a damaged .safetensors header ({why}); write or copy it again"))
    };
    let io = |error| Error::io(path, "read")(error);
    let len = file.metadata().map_err(io)?.len();
    let mut size = [0; 8];
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    file.read_exact(&mut size).map_err(|_| wrong("cut short".into()))?;
    let size = u64::from_le_bytes(size);
    if size > LONGEST_HEADER.min(len - 8) {
        return Err(wrong(format!("its length of {size} bytes is not possible")));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header = serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
    Ok((header, 8 + size))
}

/// Whether a safetensors file is a model that this program wrote, in any version, by its header.
pub fn is_model(header: &Metadata) -> bool {
    let keys = ["architecture", "config"];
    header.metadata().as_ref().is_some_and(|text| keys.iter().any(|key| text.contains_key(*key)))
        && header.info("w_dec").is_some()
}

/// Gives a finished file its name. A failure deletes it.
fn finish(place: &Path, temporary: TempPath, synced: io::Result<()>) -> io::Result<()> {
    synced?;
    temporary.persist(place)?;
    sync_folder(place)
}

/// Makes a second name for a file, replacing what had that name, without copying where the system can link.
///
/// # Errors
/// As [`write_whole`].
pub fn link_whole(from: &Path, to: &Path) -> Result<()> {
    let link = |temporary: &Path| {
        fs::hard_link(from, temporary).or_else(|e| match e.kind() {
            // Another name has to be tried.
            io::ErrorKind::AlreadyExists => Err(e),
            _ => fs::copy(from, temporary).and_then(|_| File::open(temporary)?.sync_all()),
        })
    };
    let make = || {
        let temporary = unfinished(0o666).make_in(folder_of(to), link)?.into_temp_path();
        fs::rename(&temporary, to)?;
        // Renaming a link onto another link to the same file does nothing and leaves the first one, which goes here.
        drop(temporary);
        sync_folder(to)
    };
    make().map_err(Error::io(to, "write"))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the rename itself last: the folder's entry is on the disk after this.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Whether a file of this name was never finished.
pub fn is_unfinished(name: &str) -> bool {
    // safetensors' own temporary files have six letters or digits.
    let foreign = name
        .strip_prefix(".tmp")
        .is_some_and(|random| random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    foreign || (name.starts_with(UNFINISHED.0) && name.ends_with(UNFINISHED.1))
}

/// A path as text in JSON, which has no other characters than those of Unicode.
pub(crate) fn path_as_text<S: serde::Serializer>(
    path: &Path,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_whole(&path, b"old").unwrap();
        let fail = |_: &Path| Err(Error::Failed("no".into()));
        let begin = |mut file: &File| file.write_all(b"half").map_err(Error::io(&path, "write"));
        let failed = write_with(&path, |file| begin(file).and_then(|()| fail(&path)));
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert_eq!(write_by_name(&path, fail).unwrap_err().to_string(), "no");
        assert_eq!(
            (fs::read(&path).unwrap().as_slice(), names(folder.path())),
            (&b"old"[..], vec!["a.txt".into()])
        );
    }

    #[test]
    fn linking_replaces_an_older_file_of_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        write_whole(&a, b"one").unwrap();
        write_whole(&b, b"two").unwrap();
        link_whole(&a, &b).unwrap();
        link_whole(&a, &b).unwrap();
        assert_eq!(names(folder.path()), ["a", "b"], "linking twice left a temporary file");
        write_whole(&a, b"three").unwrap();
        assert_eq!(fs::read(&b).unwrap(), b"one");
    }

    #[test]
    fn names_of_unfinished_files_are_not_those_that_people_give() {
        let folder = tempfile::tempdir().unwrap();
        let temporary = unfinished(0o666).tempfile_in(folder.path()).unwrap();
        for name in [temporary.path().file_name().unwrap().to_str().unwrap(), ".tmpAb3xYz"] {
            assert!(is_unfinished(name), "{name}");
        }
        for name in ["notes.tmp", ".tmp", ".tmpnotes.txt", ".sae-notes", "x.sae-1.tmp"] {
            assert!(!is_unfinished(name), "{name}");
        }
    }
}
