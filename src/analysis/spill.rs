//! How much memory codes may take, and the temporary file that holds those which need more.

use crate::error::{Error, Result};
use crate::memory::half_of_free;
use crate::text::bytes;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Memory for codes, and where a temporary file for the rest may lie.
#[derive(Debug, Clone)]
pub struct Room {
    /// Bytes of memory.
    pub memory: u64,
    /// Folders for the temporary file, the best first.
    folders: Vec<PathBuf>,
}

impl Room {
    /// `memory` bytes, or half of what is free now. The temporary file goes to the run folder; where the model is a file
    /// or the folder cannot be written, to that of an output, that of the model's file, or the system's (`TMPDIR`).
    pub fn new<'a>(
        memory: Option<u64>,
        model: &Path,
        outputs: impl IntoIterator<Item = &'a PathBuf>,
    ) -> Self {
        let memory = memory.unwrap_or_else(half_of_free);
        let folder_of = |path: &Path| {
            path.parent().map(|p| if p.as_os_str().is_empty() { ".".into() } else { p.to_owned() })
        };
        let run = model.is_dir().then(|| model.to_owned());
        // Not beside a pipe or device.
        let outputs = outputs.into_iter().filter(|path| path.is_file() || !path.exists());
        let outputs = outputs.filter_map(|path| folder_of(path));
        let model = if run.is_none() { folder_of(model) } else { None };
        let folders = run.into_iter().chain(outputs).chain(model).chain([std::env::temp_dir()]);
        Self { memory, folders: folders.collect() }
    }

    /// An empty file without a name, in the first folder that takes one.
    ///
    /// # Errors
    /// [`Error::Failed`] where none does, with the reason of each.
    pub fn file(&self) -> Result<SpillFile> {
        let mut refused = vec![];
        for folder in &self.folders {
            match tempfile::tempfile_in(folder) {
                Ok(file) => {
                    return Ok(SpillFile { file, folder: folder.clone(), len: 0, memory: self.memory });
                }
                Err(e) => refused.push(format!("{} ({e})", folder.display())),
            }
        }
        refused.dedup();
        Err(Error::Failed(format!(
            "codes need more memory than {} and no folder takes a temporary file of them: {}; set TMPDIR to a folder on a disk, or raise --memory, then run the command again",
            bytes(self.memory),
            refused.join(", ")
        )))
    }
}

/// A temporary file of words. It has no name, so that nothing is left of it however the program ends.
#[derive(Debug)]
pub struct SpillFile {
    file: File,
    folder: PathBuf,
    /// Bytes in it.
    len: u64,
    /// The memory that was not enough, for messages.
    memory: u64,
}

impl SpillFile {
    /// Adds words; the place of the first, in bytes.
    ///
    /// # Errors
    /// [`Error::Failed`] with the folder, what was written so far, and what to do.
    pub fn append(&mut self, words: &[u32]) -> Result<u64> {
        let at = self.len;
        let all: &[u8] = bytemuck::cast_slice(words);
        (&self.file).write_all(all).map_err(|e| self.refused(&e, all.len()))?;
        self.len += all.len() as u64;
        Ok(at)
    }

    /// Reads words from byte `at` on.
    ///
    /// # Errors
    /// [`Error::Io`] naming the folder.
    pub fn read(&self, at: u64, words: &mut [u32]) -> Result<()> {
        let all = bytemuck::cast_slice_mut(words);
        self.file.read_exact_at(all, at).map_err(Error::io(&self.folder, "read a temporary file in it"))
    }

    fn refused(&self, error: &io::Error, more: usize) -> Error {
        let first = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space there, ",
            ErrorKind::FileTooLarge => "raise the limit on the size of files (`ulimit -f unlimited`), ",
            _ => "",
        };
        Error::Failed(format!(
            "{}: cannot write {} more of codes to a temporary file that holds {}: {error}; {first}or raise --memory ({} now), then run the command again",
            self.folder.display(),
            bytes(more as u64),
            bytes(self.len),
            bytes(self.memory)
        ))
    }
}

/// Ranges of neighbours whose `counts` add up to at most `most`, at least one each.
pub fn ranges(counts: &[u64], most: u64) -> Vec<Range<usize>> {
    let (mut out, mut begin, mut sum) = (vec![], 0, 0);
    for (j, &count) in counts.iter().enumerate() {
        if j > begin && count > most.saturating_sub(sum) {
            out.push(begin..j);
            (begin, sum) = (j, 0);
        }
        sum += count;
    }
    out.push(begin..counts.len());
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_file_lies_in_the_run_and_has_no_name() {
        let run = tempfile::tempdir().unwrap();
        let room = Room::new(Some(8), run.path(), []);
        let mut file = room.file().unwrap();
        assert_eq!(file.folder, run.path());
        assert_eq!((file.append(&[1, 2]).unwrap(), file.append(&[3]).unwrap()), (0, 8));
        let mut words = [0; 2];
        file.read(4, &mut words).unwrap();
        assert_eq!(words, [2, 3]);
        assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 0);
        assert!(file.read(8, &mut words).unwrap_err().to_string().contains("cannot read a temporary file"));
    }

    #[test]
    fn another_folder_takes_it_where_the_model_s_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let of = |model: &str, out: &str| Room::new(Some(8), &at(model), [&at(out)]).folders;
        assert_eq!(of("no/model", "out/table")[..2], [at("out"), at("no")]);
        std::fs::create_dir(at("out")).unwrap();
        let room = Room::new(Some(8), &at("no/model"), [&at("gone/table"), &at("out/table")]);
        assert_eq!(room.file().unwrap().folder, at("out"));
        // A device is no place for a file beside it.
        assert_eq!(Room::new(Some(8), Path::new("model"), [&"/dev/null".into()]).folders[0], Path::new("."));
        let nowhere = Room { memory: 2_000_000, folders: vec![at("a"), at("b")] };
        let error = nowhere.file().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("1.91 MiB") && text.contains("/a (No such") && text.contains("/b (No"),
            "{text}"
        );
        assert!(error.exit_status() == 1 && text.contains("--memory") && text.contains("TMPDIR"), "{text}");
    }

    #[test]
    fn ranges_hold_what_fits_and_one_at_least() {
        let of = |counts: &[u64], most| -> Vec<[usize; 2]> {
            ranges(counts, most).into_iter().map(|range| [range.start, range.end]).collect()
        };
        assert_eq!(of(&[1, 2, 3, 9, 0, 0, 1], 3), [[0, 2], [2, 3], [3, 6], [6, 7]]);
        assert_eq!(of(&[5, 0], 0), [[0, 2]]);
        assert_eq!(of(&[0, 5, 5], u64::MAX), [[0, 3]]);
    }
}
