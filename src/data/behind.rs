//! The other files that a data file takes values from.

use super::file::{File, Place};
use super::scan::survey;
use std::path::{Path, PathBuf};

/// Datasets looked at: a file of many thousands that are merely compressed is not opened one by one.
const MOST: usize = 10_000;

/// Files that external links, virtual datasets and external storage of `path` name, and files of ids beside it; none for
/// what is no data file. A relative name is given as the library looks for it: beside the file.
pub fn files_behind(path: &Path) -> Vec<PathBuf> {
    // Opening a pipe would take it away from its reader.
    let Some(Ok(file)) = path.is_file().then(|| File::open(path)) else { return vec![] };
    let folder = path.parent().unwrap_or(Path::new(""));
    if file.hdf().is_none() {
        return super::id_file::all_beside(path);
    }
    let mut found = vec![];
    for dataset in survey(&file)
        .map(|found| found.datasets)
        .unwrap_or_default()
        .iter()
        .filter(|d| d.place == Place::Library)
        .take(MOST)
    {
        let Some(Ok(dataset)) = file.hdf().map(|hdf| hdf.dataset(&dataset.path)) else { continue };
        found.push(dataset.filename());
        if let Ok(list) = dataset.create_plist() {
            found.extend(list.external().into_iter().map(|part| part.name));
            found.extend(list.virtual_map().into_iter().map(|part| part.src_filename));
        }
    }
    found.into_iter().map(|name| folder.join(name)).collect()
}
