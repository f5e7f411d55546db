//! Object headers read without the library.
//!
//! `H5Dopen` takes 20 to 30 microseconds, so a file with one dataset an id spends nearly all its
//! loading time there. The headers that h5py and the library write (one block, contiguous storage;
//! version 1 by default, version 2 with `libver="latest"`) are plain: this parser knows those and
//! answers `None` to everything else, which is then opened by the library. The caller checks the
//! first header of each datatype against the library, so the datatype's bytes need no decoding.
//! [`references`] finds what is not plain.
//! Layout: HDF5 File Format Specification 3.0, sections IV.A.1 (prefixes) and IV.A.2 (messages).

use super::file::File;
use super::heap::{self, Reference};

/// Longest header that is looked at; those of plain datasets take about 270 bytes.
pub(super) const HEADER_BYTES: usize = 512;

const DATASPACE: u16 = 0x01;
const DATATYPE: u16 = 0x03;
const LAYOUT: u16 = 0x08;
/// Messages that change neither shape nor place: NIL, fill values, attributes, modification times,
/// reference counts.
const HARMLESS: [u16; 8] = [0x00, 0x04, 0x05, 0x0c, 0x0e, 0x12, 0x15, 0x16];
const CLASS_FLOAT: u8 = 1;
const CLASS_VARIABLE: u8 = 9;
const ATTRIBUTE: u16 = 0x0c;
const CONTINUATION: u16 = 0x10;
/// Most bytes of a header that is searched for heaps, and most parts.
const MOST_BYTES: usize = 1 << 20;
const MOST_PARTS: usize = 1 << 10;

/// A contiguous float dataset, as its header describes it.
#[derive(Debug, PartialEq)]
pub(super) struct Contiguous {
    pub shape: Vec<u64>,
    /// The datatype message, byte for byte.
    pub datatype: Vec<u8>,
    pub offset: u64,
    pub bytes: u64,
}

/// The messages of a header, and how each begins.
struct Messages<'a> {
    body: &'a [u8],
    /// Bytes before the data of each message, and whether version 2 wrote them.
    prefix: usize,
    version_2: bool,
}

/// Reads the header at the start of `bytes`; `None` if it is of any but the plainest kind.
pub(super) fn parse(bytes: &[u8]) -> Option<Contiguous> {
    let messages = first_block(bytes)?;
    let (mut shape, mut datatype, mut layout) = (None, None, None);
    for message in messages {
        let (kind, data) = message?;
        match kind {
            DATASPACE => shape = Some(dataspace(data)?),
            DATATYPE if data.first()? & 0x0f == CLASS_FLOAT => datatype = Some(data.to_vec()),
            LAYOUT => layout = Some(contiguous(data)?),
            other if HARMLESS.contains(&other) => {}
            _ => return None,
        }
    }
    let (offset, bytes) = layout?;
    Some(Contiguous { shape: shape?, datatype: datatype?, offset, bytes })
}

impl<'a> Iterator for Messages<'a> {
    /// A message's kind and data; `None` if it is damaged or lies elsewhere.
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        // What is shorter than a message's prefix is padding.
        if self.body.len() < self.prefix {
            return None;
        }
        let rest = std::mem::take(&mut self.body);
        let (kind, len, flags) = if self.version_2 {
            (u16::from(rest[0]), u16::from_le_bytes([rest[1], rest[2]]), rest[3])
        } else {
            (u16::from_le_bytes([rest[0], rest[1]]), u16::from_le_bytes([rest[2], rest[3]]), rest[4])
        };
        let Some(data) = rest.get(self.prefix..self.prefix + usize::from(len)) else { return Some(None) };
        self.body = &rest[self.prefix + data.len()..];
        // Bit 1: the message lies elsewhere.
        Some((flags & 2 == 0).then_some((kind, data)))
    }
}

/// What the header at `address` refers to in heaps: the parts of a virtual dataset, and texts of attributes. A part of the
/// header that cannot be read gives none.
pub(super) fn references(file: &File, address: u64) -> Vec<Reference> {
    let mut found = vec![];
    let mut parts = vec![];
    let first = |size: usize| {
        let left = usize::try_from(file.len.saturating_sub(address)).unwrap_or(usize::MAX);
        heap::read(file, address, size.min(left)).unwrap_or_default()
    };
    let mut bytes = first(HEADER_BYTES);
    if first_block(&bytes).is_none() {
        bytes = first(MOST_BYTES);
    }
    let Some(messages) = first_block(&bytes) else { return found };
    let (prefix, version_2) = (messages.prefix, messages.version_2);
    collect(messages, &mut found, &mut parts);
    let mut next = 0;
    while let Some(&(at, len)) = parts.get(next)
        && next < MOST_PARTS
    {
        next += 1;
        let Some(bytes) =
            usize::try_from(len).ok().filter(|&n| n <= MOST_BYTES).and_then(|n| heap::read(file, at, n))
        else {
            continue;
        };
        // A part of version 2 has a signature before and a checksum after.
        let body =
            if version_2 { bytes.get(4..bytes.len().saturating_sub(4)).unwrap_or_default() } else { &bytes };
        collect(Messages { body, prefix, version_2 }, &mut found, &mut parts);
    }
    found
}

/// Adds the heaps that `messages` refer to, and where the header goes on.
fn collect(messages: Messages<'_>, found: &mut Vec<Reference>, parts: &mut Vec<(u64, u64)>) {
    const VIRTUAL: u8 = 3;
    for (kind, data) in messages.flatten() {
        match kind {
            CONTINUATION => parts.extend(u64_at(data, 0).zip(u64_at(data, 8))),
            LAYOUT if data.first() == Some(&4) && data.get(1) == Some(&VIRTUAL) => {
                let whole = u64_at(data, 2).zip(u32_at(data, 10));
                found.extend(whole.map(|(address, index)| Reference { address, index, size: None }));
            }
            ATTRIBUTE => {
                let text = |bytes: &[u8]| {
                    let (size, address, index) = (u32_at(bytes, 0)?, u64_at(bytes, 4)?, u32_at(bytes, 12)?);
                    Some(Reference { address, index, size: Some(u64::from(size)) })
                };
                found.extend(texts_of(data).unwrap_or_default().chunks_exact(16).filter_map(text));
            }
            _ => {}
        }
    }
    // Nothing was written there.
    found.retain(|r| r.address != 0 && r.address != u64::MAX && r.size != Some(0));
}

/// The references of an attribute of texts of variable length: a length (u32), the heap's address (u64), an index (u32) each.
fn texts_of(data: &[u8]) -> Option<&[u8]> {
    let version = *data.first()?;
    let sizes = [u16_at(data, 2)?, u16_at(data, 4)?, u16_at(data, 6)?].map(usize::from);
    let (start, [name, datatype, space]) = match version {
        1 => (8, sizes.map(|size| size.next_multiple_of(8))),
        2 => (8, sizes),
        3 => (9, sizes),
        _ => return None,
    };
    let (class, kind) = (data.get(start + name)? & 0x0f, data.get(start + name + 1)? & 0x0f);
    // Kind 0 are sequences, which are not read.
    (class == CLASS_VARIABLE && kind == 1).then(|| data.get(start + name + datatype + space..))?
}

/// The messages of the block that a header begins with, of either version.
fn first_block(bytes: &[u8]) -> Option<Messages<'_>> {
    version_1(bytes).or_else(|| version_2(bytes))
}

fn version_1(bytes: &[u8]) -> Option<Messages<'_>> {
    const PREFIX: usize = 16;
    if bytes.first()? != &1 {
        return None;
    }
    let size = u32_at(bytes, 8)? as usize;
    Some(Messages { body: bytes.get(PREFIX..PREFIX.checked_add(size)?)?, prefix: 8, version_2: false })
}

fn version_2(bytes: &[u8]) -> Option<Messages<'_>> {
    if !bytes.starts_with(b"OHDR\x02") {
        return None;
    }
    let flags = *bytes.get(5)?;
    let times = if flags & 0x20 != 0 { 16 } else { 0 };
    let limits = if flags & 0x10 != 0 { 4 } else { 0 };
    let at = 6 + times + limits;
    let width = 1 << (flags & 3);
    let mut size = [0u8; 8];
    size[..width].copy_from_slice(bytes.get(at..at + width)?);
    let start = at + width;
    let end = start.checked_add(usize::try_from(u64::from_le_bytes(size)).ok()?)?;
    let body = bytes.get(start..end)?;
    if u32_at(bytes, end)? != checksum(&bytes[..end]) {
        return None;
    }
    Some(Messages { body, prefix: if flags & 4 != 0 { 6 } else { 4 }, version_2: true })
}

/// Bob Jenkins' lookup3 (`hashlittle`, public domain), which the format uses for metadata.
fn checksum(bytes: &[u8]) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(bytes.len() as u32);
    let mut s = [start; 3];
    let n_full = bytes.len().saturating_sub(1) / 12;
    for (i, block) in bytes.chunks(12).enumerate() {
        let mut words = [0u8; 12];
        words[..block.len()].copy_from_slice(block);
        for (word, bytes) in s.iter_mut().zip(words.chunks_exact(4)) {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            *word = word.wrapping_add(u32::from_le_bytes(bytes));
        }
        if i < n_full {
            // (x -= z; x ^= z <<< r; z += y) over the three words in turn.
            for (step, r) in [4, 6, 8, 16, 19, 4].into_iter().enumerate() {
                let (x, y, z) = (step % 3, (step + 1) % 3, (step + 2) % 3);
                s[x] = s[x].wrapping_sub(s[z]) ^ s[z].rotate_left(r);
                s[z] = s[z].wrapping_add(s[y]);
            }
        } else {
            // (z ^= y; z -= y <<< r), starting with the last word.
            for (step, r) in [14, 11, 25, 16, 4, 14, 24].into_iter().enumerate() {
                let (z, y) = ((step + 2) % 3, (step + 1) % 3);
                s[z] = (s[z] ^ s[y]).wrapping_sub(s[y].rotate_left(r));
            }
        }
    }
    s[2]
}

fn dataspace(data: &[u8]) -> Option<Vec<u64>> {
    const SIMPLE: u8 = 1;
    let (version, rank, flags) = (*data.first()?, *data.get(1)?, *data.get(2)?);
    let start = match version {
        1 => 8,
        2 if *data.get(3)? == SIMPLE => 4,
        _ => return None,
    };
    // Flag bit 1, a permutation of the axes, was never implemented.
    if flags & 2 != 0 || rank > 2 {
        return None;
    }
    (0..usize::from(rank)).map(|axis| u64_at(data, start + 8 * axis)).collect()
}

fn contiguous(data: &[u8]) -> Option<(u64, u64)> {
    const CONTIGUOUS: u8 = 1;
    if !matches!(data.first()?, 3 | 4) || data.get(1)? != &CONTIGUOUS {
        return None;
    }
    let (offset, bytes) = (u64_at(data, 2)?, u64_at(data, 10)?);
    // All ones: nothing was written yet, or the values lie in external files.
    (offset != u64::MAX).then_some((offset, bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_lookup3() {
        // The two values that lookup3.c itself gives for this sentence and seeds; ours is seed 0.
        assert_eq!(checksum(b"Four score and seven years ago"), 0x1777_0551);
        assert_eq!(checksum(b""), 0xdead_beef);
    }

    #[test]
    fn any_bytes_are_answered_without_a_panic() {
        let mut state = 7u64;
        let mut bytes = [0u8; HEADER_BYTES];
        for round in 0..20_000 {
            for byte in &mut bytes {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                *byte = (state >> 61) as u8;
            }
            if round % 2 == 0 {
                bytes[0] = 1;
            } else {
                bytes[..5].copy_from_slice(b"OHDR\x02");
            }
            let _ = parse(&bytes);
        }
        for len in 0..24 {
            assert_eq!(parse(&bytes[..len]), None);
        }
    }
}
