//! Compiled kernels kept on disk, by what they were compiled from.
//!
//! An entry is a header (magic, length and CRC-32 of the CUBIN, little-endian) and the CUBIN. One that is damaged is
//! compiled again, and a folder that cannot be written only costs the time to compile.

use super::{Arch, Sources, compile, options};
use crate::backend::cuda::libraries::{self, Need, Version};
use crate::error::{Error, Result};
use crate::files;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Start of an entry; its last byte is the version of this format.
const MAGIC: [u8; 8] = *b"saecub\0\x01";
const HEADER: usize = 8 + 8 + 4;

/// Compiled kernels, and whether they were on disk already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// No compiler ran.
    pub hit: bool,
}

/// The folder of compiled kernels: `$SAE_CACHE`, `$XDG_CACHE_HOME/topk-sae` or `~/.cache/topk-sae`.
pub fn folder() -> Option<PathBuf> {
    folder_by(&|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
}

fn folder_by(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // The convention ignores a relative XDG_CACHE_HOME.
    let xdg = || variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    variable("SAE_CACHE")
        .or_else(|| xdg().map(|path| path.join("topk-sae")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache").join("topk-sae")))
}

/// `sources` compiled for `arch`, from `folder` where it has them.
///
/// # Errors
/// As [`compile`]; never for what is or is not in the folder.
pub fn compiled(sources: Sources<'_>, arch: Arch, folder: Option<&Path>) -> Result<Kept> {
    let version = libraries::nvrtc(Need::default()).map_err(Error::Failed)?.version;
    let path = folder.map(|folder| folder.join(file_name(sources, arch, version)));
    if let Some(cubin) = path.as_deref().and_then(read) {
        return Ok(Kept { cubin, hit: true });
    }
    let cubin = compile(sources, arch, false)?.cubin;
    if let Some(path) = &path {
        // Best effort: a read-only home must not stop a run.
        let _ = write(path, &cubin);
    }
    Ok(Kept { cubin, hit: false })
}

/// Name of an entry: all that decides what the compiler makes.
fn file_name(sources: Sources<'_>, arch: Arch, version: Version) -> String {
    let mut hash = Xxh3::new();
    // Lengths keep neighbouring texts apart.
    let mut add = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for (name, text) in sources {
        add(name.as_bytes());
        add(text.as_bytes());
    }
    for option in options(arch, false) {
        add(option.as_bytes());
    }
    add(&version.0.to_le_bytes());
    add(&version.1.to_le_bytes());
    format!("kernels-{arch}-{:032x}.cubin", hash.digest128())
}

/// The CUBIN of an entry that is there and whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut entry = std::fs::read(path).ok()?;
    let (magic, rest) = entry.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (crc, cubin) = rest.split_first_chunk::<4>()?;
    let whole = *magic == MAGIC
        && u64::from_le_bytes(*length) == cubin.len() as u64
        && u32::from_le_bytes(*crc) == crc32fast::hash(cubin);
    whole.then(|| entry.split_off(HEADER))
}

fn write(path: &Path, cubin: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    }
    let mut entry = Vec::with_capacity(HEADER + cubin.len());
    entry.extend(MAGIC);
    entry.extend((cubin.len() as u64).to_le_bytes());
    entry.extend(crc32fast::hash(cubin).to_le_bytes());
    entry.extend(cubin);
    files::write_whole(path, &entry)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("a.cubin");
        let cubin: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
        write(&path, &cubin).unwrap();
        assert_eq!(read(&path).unwrap(), cubin);
        let entry = std::fs::read(&path).unwrap();
        for n in [0, 7, 8, 15, 16, HEADER - 1, HEADER, entry.len() - 1] {
            std::fs::write(&path, &entry[..n]).unwrap();
            assert_eq!(read(&path), None, "cut to {n} bytes");
        }
        for n in [0, 7, 8, 17, HEADER, entry.len() - 1] {
            let mut flipped = entry.clone();
            flipped[n] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            assert_eq!(read(&path), None, "byte {n} changed");
        }
    }

    #[test]
    fn several_that_write_one_entry_at_once_leave_it_whole_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels.cubin");
        let cubins: Vec<Vec<u8>> = (0..4).map(|i| vec![i; 300_000 + 1000 * usize::from(i)]).collect();
        std::thread::scope(|scope| {
            for cubin in &cubins {
                scope.spawn(|| {
                    for _ in 0..20 {
                        write(&path, cubin).unwrap();
                        let found = read(&path);
                        assert!(found.is_some_and(|found| cubins.contains(&found)), "a torn entry");
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "unfinished files are left");
    }

    #[test]
    fn the_name_differs_by_all_that_decides_the_code() {
        let name = |sources: Sources<'_>, arch, version| file_name(sources, Arch(arch), version);
        let plain = name(&[("a.cu", "x"), ("b.cu", "y")], 90, (13, 0));
        assert_eq!(plain, name(&[("a.cu", "x"), ("b.cu", "y")], 90, (13, 0)));
        assert!(plain.starts_with("kernels-sm_90-") && plain.ends_with(".cubin"), "{plain}");
        for other in [
            name(&[("a.cu", "x"), ("b.cu", "z")], 90, (13, 0)),
            name(&[("a.cu", "xb.cu"), ("", "y")], 90, (13, 0)),
            name(&[("a.cu", "x"), ("b.cu", "y")], 80, (13, 0)),
            name(&[("a.cu", "x"), ("b.cu", "y")], 90, (13, 1)),
        ] {
            assert_ne!(other, plain);
        }
    }

    #[test]
    fn the_folder_follows_the_environment() {
        let by = |pairs: &'static [(&str, &str)]| {
            folder_by(&move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v)))
        };
        assert_eq!(by(&[("SAE_CACHE", "/c"), ("HOME", "/h")]), Some("/c".into()));
        assert_eq!(by(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Some("/x/topk-sae".into()));
        assert_eq!(by(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]), Some("/h/.cache/topk-sae".into()));
        assert_eq!(by(&[]), None);
    }
}
