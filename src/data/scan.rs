//! Lists the datasets of a file, with type, shape and place, in the order of their names' bytes.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;

use rayon::prelude::*;

use super::h5::{Dataset, File, Kind, Link, Place};
use super::header::{self, Contiguous, HEADER_BYTES};
use super::kind::Stored;
use crate::error::{Error, Result};
use crate::interrupt;

/// Datatype messages whose meaning the library told; `None` where it disagreed with the header.
type KnownTypes = HashMap<Vec<u8>, Option<Stored>>;

/// The datasets in `group` ("" is the root) and the groups under it if `deep`.
///
/// Hard links are followed once (groups may loop); soft and external links only to datasets.
pub(super) fn scan(file: &File, group: &str, deep: bool) -> Result<Vec<Dataset>> {
    let mut known = KnownTypes::new();
    let mut seen = HashSet::new();
    let mut waiting = vec![group.to_owned()];
    let mut found = Vec::new();
    let own = file.is_own(group);
    while let Some(group) = waiting.pop() {
        let links = file.links(&group)?;
        let headers = if own && file.plain { read_headers(file, &links) } else { Vec::new() };
        let mut headers = headers.into_iter();
        for link in links {
            interrupt::check()?;
            let path = join(&group, &link.name);
            let header = headers.next().flatten();
            if let Some(dataset) = by_header(file, &path, header, &mut known)? {
                found.push(dataset);
                continue;
            }
            match file.describe(&path, own && link.address.is_some())? {
                Some(dataset) => found.push(dataset),
                // Committed types are no groups.
                None => {
                    if deep && link.address.is_some_and(|a| seen.insert(a)) && file.is_group(&path) {
                        waiting.push(path);
                    }
                }
            }
        }
    }
    found.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
    for dataset in &found {
        check_extent(file, dataset)?;
    }
    Ok(found)
}

/// `group/name`, without a leading slash.
pub(super) fn join(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") }
}

fn read_headers(file: &File, links: &[Link]) -> Vec<Option<Contiguous>> {
    let read = |link: &Link| {
        let address = link.address?;
        let mut bytes = [0u8; HEADER_BYTES];
        let n = file.raw.read_at(&mut bytes, address).ok()?;
        header::parse(&bytes[..n])
    };
    links.par_iter().with_min_len(256).map(read).collect()
}

/// The dataset that `header` tells of, if its datatype is known or the library confirms it.
fn by_header(
    file: &File,
    path: &str,
    header: Option<Contiguous>,
    known: &mut KnownTypes,
) -> Result<Option<Dataset>> {
    let Some(header) = header else {
        return Ok(None);
    };
    let stored = match known.get(&header.datatype) {
        Some(stored) => *stored,
        None => {
            let stored = match file.describe(path, true)? {
                Some(Dataset { shape, kind: Kind::Float(stored), place: Place::At(offset), .. })
                    if shape == header.shape && offset == header.offset =>
                {
                    Some(stored)
                }
                _ => None,
            };
            known.insert(header.datatype, stored);
            stored
        }
    };
    let Some(stored) = stored else {
        return Ok(None);
    };
    let needed = byte_len(&header.shape, stored.dtype.size());
    if needed != Some(header.bytes) {
        return Ok(None);
    }
    Ok(Some(Dataset {
        path: path.to_owned(),
        shape: header.shape,
        kind: Kind::Float(stored),
        place: Place::At(header.offset),
    }))
}

fn byte_len(shape: &[u64], size: usize) -> Option<u64> {
    shape.iter().try_fold(size as u64, |product, &n| product.checked_mul(n))
}

/// A float dataset must lie inside the file and fit an address.
fn check_extent(file: &File, dataset: &Dataset) -> Result<()> {
    let Kind::Float(stored) = dataset.kind else {
        return Ok(());
    };
    let place = format!("dataset \"/{}\"", dataset.path);
    let Some(bytes) = byte_len(&dataset.shape, stored.dtype.size()).filter(|&b| b < 1 << 62) else {
        return Err(Error::data(
            &file.path,
            place,
            format!(
                "claims the impossible shape {:?}; the file is damaged: download or copy it again",
                dataset.shape
            ),
        ));
    };
    let room =
        file.in_parts || usize::try_from(bytes).is_ok_and(|b| Vec::<u8>::new().try_reserve_exact(b).is_ok());
    if !room {
        return Err(Error::data(
            &file.path,
            place,
            format!("needs {bytes} bytes of memory, more than there is; use a part of it"),
        ));
    }
    if let Place::At(offset) = dataset.place
        && offset.checked_add(bytes).is_none_or(|end| end > file.len)
    {
        return Err(Error::data(
            &file.path,
            place,
            format!(
                "its values end past the file's {} bytes; the file is cut short: download or copy it again",
                file.len
            ),
        ));
    }
    Ok(())
}
