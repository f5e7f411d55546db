//! Which files a person means: files, folders of files, and patterns that the shell was kept from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::signature;
use crate::error::{Error, Result};
use crate::text::tsv::quoted_path;

/// Endings of data files, by format: a folder that has several formats is not read as one data set.
const ENDINGS: [(&str, &[&str]); 4] = [
    ("HDF5", &["h5", "hdf5", "hdf", "he5", "h5ad", "h5mu", "loom", "mat", "nc", "nc4"]),
    (".npy", &["npy"]),
    (".safetensors", &["safetensors"]),
    ("Parquet", &["parquet"]),
];

/// Data files, in the order in which they are read.
#[derive(Debug, Default)]
pub struct FoundFiles {
    /// The files.
    pub paths: Vec<PathBuf>,
    /// What a person should know of the search.
    pub warnings: Vec<String>,
}

/// The files that `given` stand for: each a file, a folder, which stands for the data files in it (not those in folders
/// inside), or a pattern with `*`, `?` or `[...]`. Files of a folder and of a pattern come in the order of their names'
/// bytes.
///
/// # Errors
/// A folder without data files, or with those of several formats; a pattern that nothing matches.
pub fn data_files(given: &[PathBuf]) -> Result<FoundFiles> {
    let mut found = FoundFiles::default();
    for path in given {
        if path.is_dir() {
            found.folder(path)?;
            continue;
        }
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']) && !path.exists());
        let Some(pattern) = pattern else {
            found.paths.push(path.clone());
            continue;
        };
        let wrong = |what: String| Error::data(path, "", what);
        let matches =
            glob::glob(pattern).map_err(|error| wrong(format!("is no pattern of files: {error}")))?;
        let before = found.paths.len();
        for path in matches {
            let path = path.map_err(|error| wrong(format!("cannot be searched: {error}")))?;
            if path.is_dir() { found.folder(&path)? } else { found.paths.push(path) }
        }
        if found.paths.len() == before {
            return Err(wrong(format!(
                "is neither a file nor a pattern that matches one; see `ls {}`",
                quoted_path(path.parent().filter(|folder| folder.is_dir()).unwrap_or(Path::new(".")))
            )));
        }
    }
    allow_open(found.paths.len())?;
    Ok(found)
}

/// Sees to it that `n` data files can be open at once, each by itself and by the library of HDF5: the usual limit is 1024, which
/// a process may raise to the system's own.
///
/// # Errors
/// The system does not allow so many.
fn allow_open(n: usize) -> Result<()> {
    /// What else is open: standard streams, outputs, libraries.
    const OTHERS: u64 = 64;
    let needed = (2 * n as u64).saturating_add(OTHERS) as libc::rlim_t;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a structure to fill that outlives the call.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    if !known || limit.rlim_cur >= needed {
        return Ok(());
    }
    let most = limit.rlim_max;
    limit.rlim_cur = needed.min(most);
    // SAFETY: `limit` is a filled structure that outlives the call.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0;
    if raised && needed <= most {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "{n} data files need {needed} files open at once and the system allows {most}; put them into fewer files, or raise the limit: `ulimit -n {needed}`"
    )))
}

/// The format that the name of a file promises.
fn format_of(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    ENDINGS.iter().find(|(_, endings)| endings.contains(&ending.as_str())).map(|(format, _)| *format)
}

impl FoundFiles {
    fn folder(&mut self, folder: &Path) -> Result<()> {
        let wrong = |what: String| Err(Error::data(folder, "", what));
        if signature::is_zarr(folder) {
            self.paths.push(folder.to_owned());
            return Ok(());
        }
        let entries = std::fs::read_dir(folder).map_err(Error::io(folder, "list"))?;
        let mut all: Vec<PathBuf> = vec![];
        for entry in entries {
            all.push(entry.map_err(Error::io(folder, "list"))?.path());
        }
        all.sort();
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.retain(|path| !name(path).starts_with('.'));
        let (mut formats, mut others) = (BTreeMap::<&str, Vec<PathBuf>>::new(), vec![]);
        for path in all {
            let ids = [".ids.txt", ".ids.npy"].iter().any(|ending| name(&path).ends_with(ending));
            match format_of(&path).filter(|_| path.is_file()) {
                _ if ids => {}
                Some(format) => formats.entry(format).or_default().push(path),
                None => others.push(path),
            }
        }
        if formats.len() > 1 {
            let mut endings = BTreeMap::new();
            for path in formats.values().flatten() {
                *endings.entry(path.extension().unwrap_or_default().to_string_lossy()).or_insert(0) += 1;
            }
            let choice = |(ending, n): (&_, &usize)| {
                let pattern = quoted_path(&folder.join(format!("*.{ending}")));
                format!("{pattern} ({n} {})", if *n == 1 { "file" } else { "files" })
            };
            let choices: Vec<String> = endings.iter().map(choice).collect();
            return wrong(format!("holds files of several formats; name one of: {}", choices.join(", ")));
        }
        let Some((_, paths)) = formats.pop_first() else {
            return wrong(match others.iter().find(|path| path.is_dir()) {
                Some(inner) => format!(
                    "holds no data files (.h5, .npy, .safetensors); folders inside are not searched: name one, such as {}",
                    quoted_path(inner)
                ),
                None => "holds no data files (.h5, .npy, .safetensors); name files by their names if they have others".into(),
            });
        };
        if let Some(first) = others.first() {
            self.warnings.push(format!(
                "{}: {} of its entries {} no data and {} skipped, the first {}",
                folder.display(),
                others.len(),
                if others.len() == 1 { "is" } else { "are" },
                if others.len() == 1 { "is" } else { "are" },
                name(first)
            ));
        }
        self.paths.extend(paths);
        Ok(())
    }
}
