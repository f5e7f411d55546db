//! Variable-length strings read without the library.
//!
//! HDF5 1.10 crashes or hangs on a damaged global heap, and ids as h5py writes them lie there.
//! Each string is a reference (length u32, address u64, index u32) in the dataset; the address
//! is that of a heap: "GCOL", version 1, three zeros, size u64, then objects (index u16, count u16,
//! four zeros, size u64, data padded to eight bytes), an object of index 0 being the free rest.
//! Layout: HDF5 File Format Specification 3.0, section III.E.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::unix::fs::FileExt;

use super::file::File;

const REFERENCE: usize = 16;
const PREFIX: usize = 16;

/// One heap and where its objects lie in it.
struct Heap {
    bytes: Vec<u8>,
    objects: HashMap<u16, (usize, usize)>,
}

/// The `n` strings whose references lie at `offset`; `None` if any part of it is damaged.
pub(super) fn strings(file: &File, offset: u64, n: usize) -> Option<Vec<Vec<u8>>> {
    let references = read(file, offset, n.checked_mul(REFERENCE)?)?;
    let mut heaps: HashMap<u64, Heap> = HashMap::new();
    // Heaps do not overlap, so together they are no longer than the file.
    let mut room = file.len;
    let mut texts = Vec::with_capacity(n);
    for reference in references.chunks_exact(REFERENCE) {
        let len = u32::from_le_bytes(reference[..4].try_into().ok()?) as usize;
        let address = u64::from_le_bytes(reference[4..12].try_into().ok()?);
        let index = u32::from_le_bytes(reference[12..].try_into().ok()?);
        // Empty strings and those never written have no heap.
        if len == 0 || address == 0 || address == u64::MAX {
            texts.push(Vec::new());
            continue;
        }
        let heap = match heaps.entry(address) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                let heap = open(file, address)?;
                room = room.checked_sub(heap.bytes.len() as u64)?;
                free.insert(heap)
            }
        };
        let (start, size) = *heap.objects.get(&u16::try_from(index).ok()?)?;
        let text = heap.bytes[start..start + size].get(..len)?;
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(len);
        texts.push(text[..end].to_vec());
    }
    Some(texts)
}

/// An object of a heap that something refers to.
pub(super) struct Reference {
    pub address: u64,
    pub index: u32,
    /// Its size in bytes, where that is said as well.
    pub size: Option<u64>,
}

/// Whether every reference leads to an object of the stated size. If not, the library must not be asked: HDF5 1.10 loops
/// forever on a free part of size 0, reads objects that do not exist, and copies too long an object past its buffer.
pub(super) fn are_sound(file: &File, references: &[Reference]) -> bool {
    let mut heaps: HashMap<u64, Option<Heap>> = HashMap::new();
    references.iter().all(|reference| {
        let heap = heaps.entry(reference.address).or_insert_with(|| open(file, reference.address));
        let object = heap.as_ref().zip(u16::try_from(reference.index).ok());
        let object = object.and_then(|(heap, index)| heap.objects.get(&index));
        object.is_some_and(|&(_, size)| reference.size.is_none_or(|needed| needed == size as u64))
    })
}

fn open(file: &File, address: u64) -> Option<Heap> {
    let prefix = read(file, address, PREFIX)?;
    if !prefix.starts_with(b"GCOL\x01") {
        return None;
    }
    let bytes = read(file, address, size_at(&prefix, 8)?)?;
    let mut objects = HashMap::new();
    let mut at = PREFIX;
    // What is shorter than an object's prefix is free.
    while at + PREFIX <= bytes.len() {
        let index = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let size = size_at(&bytes, at + 8)?;
        if index == 0 {
            // The free part, of at least its own prefix.
            at = at.checked_add(size).filter(|&end| size >= PREFIX && end <= bytes.len())?;
            continue;
        }
        let start = at + PREFIX;
        let end = start.checked_add(size.checked_next_multiple_of(8)?).filter(|&end| end <= bytes.len())?;
        objects.insert(index, (start, size));
        at = end;
    }
    Some(Heap { bytes, objects })
}

fn size_at(bytes: &[u8], at: usize) -> Option<usize> {
    let size = u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?);
    usize::try_from(size).ok()
}

/// `len` bytes at `offset`, which must lie inside the file.
pub(super) fn read(file: &File, offset: u64, len: usize) -> Option<Vec<u8>> {
    let end = offset.checked_add(len as u64)?;
    if end > file.len {
        return None;
    }
    let mut bytes = vec![0; len];
    file.raw.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}
