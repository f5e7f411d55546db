//! The one check of what a command is about to write, made before its work and not after hours of it.

use super::folder::{self, names};
use crate::data::files_behind;
use crate::error::{Error, Result};
use crate::files::{Target, resolve};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a command writes into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A table or a page.
    Text,
    /// A plot.
    Png,
    /// Codes.
    Hdf5,
    /// A model.
    Safetensors,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Png => "a PNG picture",
            Self::Hdf5 => "an HDF5 file",
            Self::Safetensors => "a safetensors file",
        }
    }

    /// Whether a file that begins so may be of this kind. An empty one may be of any.
    fn fits(self, start: &[u8]) -> bool {
        const PNG: &[u8] = b"\x89PNG";
        const HDF5: &[u8] = b"\x89HDF";
        start.is_empty()
            || match self {
                Self::Text => {
                    !start.contains(&0) && ![PNG, HDF5, b"PK"].iter().any(|magic| start.starts_with(magic))
                }
                Self::Png => start.starts_with(PNG),
                Self::Hdf5 => start.starts_with(HDF5),
                Self::Safetensors => start.get(8) == Some(&b'{'),
            }
    }
}

/// A file that a command writes.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    /// The option that named it.
    pub flag: &'a str,
    /// The file.
    pub path: &'a Path,
    /// What is written.
    pub kind: Kind,
}

/// The files that a command writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outputs<'a> {
    /// All of them.
    pub files: &'a [Output<'a>],
    /// What the command reads.
    pub inputs: &'a [PathBuf],
    /// Files that exist may be replaced.
    pub overwrite: bool,
    /// The run whose `report.html` this command may write.
    pub report_of: Option<&'a Path>,
}

impl Outputs<'_> {
    /// Refuses an output that cannot be written, would replace a file that is read or one of a run, exists and is not to
    /// be replaced, or is the same file as another output.
    ///
    /// # Errors
    /// [`Error::Usage`] that says what to name instead; as [`Target::find`].
    pub fn check(&self) -> Result<()> {
        let mut seen: Vec<(&str, Target)> = vec![];
        for &Output { flag, path, kind } in self.files {
            let told = format!("{flag} {}", path.display());
            let target = Target::find(&told, path)?;
            if let Target::File(place) = &target {
                self.check_file(&told, place, kind)?;
            }
            if let Some((other, _)) = seen.iter().find(|(_, other)| clash(other, &target)) {
                return Err(Error::Usage(format!("{told} is the same file as {other}; name two files")));
            }
            seen.push((flag, target));
        }
        Ok(())
    }

    fn check_file(&self, told: &str, place: &Path, kind: Kind) -> Result<()> {
        check_not_of_a_run(told, place, self.report_of)?;
        let is_read = |inputs: &[PathBuf]| inputs.iter().any(|input| same_file(input, place));
        if is_read(self.inputs) {
            return Err(Error::Usage(format!("{told} is an input as well; name another file")));
        }
        if place.exists() && !self.overwrite {
            return Err(Error::Usage(format!(
                "{told} exists already; name another file, or replace it with --overwrite"
            )));
        }
        // Asked late, for it opens the data.
        let from = self.inputs.iter().filter(|_| place.exists()).find(|input| is_read(&files_behind(input)));
        if let Some(input) = from {
            return Err(Error::Usage(format!(
                "{told} is an input as well: {} takes values from it; name another file",
                input.display()
            )));
        }
        // A slip of the hand must not cost somebody's data, also not with --overwrite.
        let mut start = Vec::with_capacity(512);
        let read = fs::File::open(place).and_then(|file| file.take(512).read_to_end(&mut start));
        if read.is_ok() && !kind.fits(&start) {
            let kind = kind.name();
            return Err(Error::Usage(format!(
                "{told} exists and is not {kind}, and {kind} is all that --overwrite replaces here; name another file, \
                 or remove that one first with `rm {}`",
                crate::text::tsv::quoted_path(place)
            )));
        }
        let folder = place.parent().unwrap_or(Path::new("/"));
        // Asking for the right to write is not the same as having it: a file is made to see.
        tempfile::tempfile_in(folder).map(drop).map_err(|e| {
            Error::Failed(format!(
                "{told}: cannot write in the folder {}: {e}; name a file elsewhere",
                folder.display()
            ))
        })
    }
}

/// Where the folder that `flag` names will be: the target of a link, else the path itself.
///
/// # Errors
/// [`Error::Usage`] for something else than a folder, for a place that a run keeps for its own files, and for a folder
/// that holds one of the inputs; [`Error::Io`] for links that lead nowhere.
pub fn check_folder(flag: &str, path: &Path, inputs: &[PathBuf]) -> Result<PathBuf> {
    let told = format!("{flag} {}", path.display());
    if path.file_name().is_none() {
        return Err(Error::Usage(format!("{told} names no new folder; give it a name of its own")));
    }
    let place = resolve(path).map_err(Error::io(path, "create"))?;
    if place.exists() && !place.is_dir() {
        return Err(Error::Usage(format!("{told} is a file; name a folder that does not exist yet")));
    }
    check_not_of_a_run(&told, &place, None)?;
    let inside = |input: &&PathBuf| input.canonicalize().is_ok_and(|input| input.starts_with(&place));
    if let Some(input) = inputs.iter().find(inside) {
        return Err(Error::Usage(format!(
            "{told} holds {}, an input of this command; name another folder",
            input.display()
        )));
    }
    Ok(if path.is_symlink() { place } else { path.to_owned() })
}

/// `report_of` names the run whose report may be replaced.
fn check_not_of_a_run(told: &str, place: &Path, report_of: Option<&Path>) -> Result<()> {
    let Some(run) = folder::run_that_owns(place) else { return Ok(()) };
    let is_own = || report_of.and_then(|own| own.canonicalize().ok()).is_some_and(|own| own == run);
    if place.ends_with(names::REPORT) && is_own() {
        return Ok(());
    }
    let name = place.strip_prefix(&run).unwrap_or(place);
    Err(Error::Usage(format!(
        "{told} is a file of the run {} ({}); name a file that is not a run's",
        run.display(),
        name.display()
    )))
}

/// Two outputs in one place. Several may go to a device, such as /dev/null.
fn clash(a: &Target, b: &Target) -> bool {
    match (a, b) {
        (Target::File(a), Target::File(b)) => a == b || same_file(a, b),
        (Target::Stream(a), Target::Stream(b)) => a == b && !is_device(a),
        _ => a == b,
    }
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_char_device())
}

/// Whether two paths are one file that exists, also as two of its names.
fn same_file(a: &Path, b: &Path) -> bool {
    let place = |path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    matches!((place(a), place(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_output_without_a_folder_is_refused_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let check = |path: &Path| {
            Outputs { files: &[Output { flag: "--out", path, kind: Kind::Text }], ..Default::default() }
                .check()
        };
        let error = check(&folder.path().join("no/a.tsv")).unwrap_err();
        assert!(error.exit_status() == 1 && error.to_string().contains("no/a.tsv"), "{error}");
        check(&folder.path().join("a.tsv")).unwrap();
        check(Path::new("a file that is nowhere.tsv")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
