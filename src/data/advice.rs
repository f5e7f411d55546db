//! What to do about a dataset or file that the library cannot read.

use std::ptr::null_mut;

use hdf5_sys::{h5d, h5p, h5z};

use super::file::File;
use super::h5::{Id, brief};

/// The library's reason and the way out, for the end of an error message.
pub(super) fn unreadable(error: &hdf5::Error) -> String {
    let why = brief(error);
    if why.contains("version number") || why.contains("bad version") {
        let (major, minor, micro) = hdf5::library_version();
        return format!(
            "{why}): it was written by a newer HDF5 than the {major}.{minor}.{micro} used here, or is damaged; rewrite it there with `h5repack --low=0 --high=2 OLD NEW` or h5py's File(..., libver=(\"earliest\", \"v110\"))"
        );
    }
    format!("{why}); if the file is damaged, download or copy it again")
}

/// What is wrong and what to do where a dataset was written through a filter that the library does not have.
pub(super) fn missing_filter(file: &File, path: &str) -> Option<String> {
    let (id, name) = hdf5::sync::sync(|| find_missing(file, path))?;
    let known = match id {
        32000 => "lzf",
        32001 => "blosc",
        32004 => "lz4",
        32008 => "bitshuffle",
        32013 => "zfp",
        32015 => "zstd",
        32026 => "blosc2",
        _ => name.as_str(),
    };
    let named = if known.is_empty() { String::new() } else { format!(", {known}") };
    Some(format!(
        "is compressed with a filter that is not installed here (number {id}{named}); `pip install hdf5plugin` and `export HDF5_PLUGIN_PATH=$(python3 -c 'import hdf5plugin; print(hdf5plugin.PLUGIN_PATH)')`, or rewrite it where the filter is installed: `h5repack -f GZIP=4 OLD NEW`, or h5py's compression=\"gzip\""
    ))
}

/// Number and stored name of the first filter that is not available.
fn find_missing(file: &File, path: &str) -> Option<(i32, String)> {
    let object = file.open_object(path).ok()?;
    // SAFETY: a live id of a dataset; the library answers with a new id or a negative number.
    let list = Id::new(unsafe { h5d::H5Dget_create_plist(object.0) }).ok()?;
    // SAFETY: a live id of a property list.
    let n = unsafe { h5p::H5Pget_nfilters(list.0) };
    (0..u32::try_from(n).ok()?).find_map(|index| {
        let (mut flags, mut n_values, mut config) = (0, 0, 0);
        let mut name = [0u8; 64];
        // SAFETY: a live id; no values are asked for; at most all but the last byte of `name` are written.
        let id = unsafe {
            h5p::H5Pget_filter2(
                list.0,
                index,
                &mut flags,
                &mut n_values,
                null_mut(),
                name.len() - 1,
                name.as_mut_ptr().cast(),
                &mut config,
            )
        };
        // SAFETY: any number may be asked for.
        let missing = id > 0 && unsafe { h5z::H5Zfilter_avail(id) } <= 0;
        let text = name.split(|&byte| byte == 0).next().unwrap_or_default();
        missing.then(|| (id, String::from_utf8_lossy(text).into_owned()))
    })
}
