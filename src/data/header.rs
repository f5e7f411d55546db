//! Object headers read without the library.
//!
//! `H5Dopen` takes 20 to 30 microseconds, so a file with one dataset an id spends nearly all its
//! loading time there. The headers that h5py and the library write by default (version 1, one
//! block, contiguous storage) are plain: this parser knows those and answers `None` to everything
//! else, which is then opened by the library. The caller checks the first header of each datatype
//! against the library, so the datatype's bytes need no decoding here.
//! Layout: HDF5 File Format Specification 3.0, sections IV.A.1.a (prefix) and IV.A.2 (messages).

/// Longest header that is looked at; those of plain datasets take about 270 bytes.
pub(super) const HEADER_BYTES: usize = 512;

const PREFIX: usize = 16;
const DATASPACE: u16 = 0x01;
const DATATYPE: u16 = 0x03;
const LAYOUT: u16 = 0x08;
/// Messages that change neither shape nor place: NIL, fill values, attributes, modification times.
const HARMLESS: [u16; 6] = [0x00, 0x04, 0x05, 0x0c, 0x0e, 0x12];
const CLASS_FLOAT: u8 = 1;

/// A contiguous float dataset, as its header tells it.
#[derive(Debug, PartialEq)]
pub(super) struct Contiguous {
    pub shape: Vec<u64>,
    /// The datatype message, byte for byte.
    pub datatype: Vec<u8>,
    pub offset: u64,
    pub bytes: u64,
}

/// Reads the header at the start of `bytes`; `None` if it is of any but the plainest kind.
pub(super) fn parse(bytes: &[u8]) -> Option<Contiguous> {
    if bytes.len() < PREFIX || bytes[0] != 1 {
        return None;
    }
    let n_messages = u16_at(bytes, 2)?;
    let size = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?) as usize;
    let body = bytes.get(PREFIX..PREFIX.checked_add(size)?)?;
    let (mut shape, mut datatype, mut layout) = (None, None, None);
    let mut at = 0;
    for _ in 0..n_messages {
        let kind = u16_at(body, at)?;
        let len = u16_at(body, at + 2)? as usize;
        let flags = *body.get(at + 4)?;
        let data = body.get(at + 8..at + 8 + len)?;
        // Bit 1: the message lies elsewhere.
        if flags & 2 != 0 {
            return None;
        }
        match kind {
            DATASPACE => shape = Some(dataspace(data)?),
            DATATYPE if data.first()? & 0x0f == CLASS_FLOAT => datatype = Some(data.to_vec()),
            LAYOUT => layout = Some(contiguous(data)?),
            other if HARMLESS.contains(&other) => {}
            _ => return None,
        }
        at += 8 + len;
    }
    let (offset, bytes) = layout?;
    Some(Contiguous {
        shape: shape?,
        datatype: datatype?,
        offset,
        bytes,
    })
}

fn dataspace(data: &[u8]) -> Option<Vec<u64>> {
    let (version, rank, flags) = (*data.first()?, *data.get(1)? as usize, *data.get(2)?);
    // Flag bit 1, a permutation of the axes, was never implemented.
    if version != 1 || flags & 2 != 0 || rank > 2 {
        return None;
    }
    (0..rank).map(|axis| u64_at(data, 8 + 8 * axis)).collect()
}

fn contiguous(data: &[u8]) -> Option<(u64, u64)> {
    if data.first()? != &3 || data.get(1)? != &1 {
        return None;
    }
    let (offset, bytes) = (u64_at(data, 2)?, u64_at(data, 10)?);
    // All ones: nothing was written yet, or the values lie in external files.
    (offset != u64::MAX).then_some((offset, bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_answered_without_a_panic() {
        let mut state = 7u64;
        let mut bytes = [0u8; HEADER_BYTES];
        for _ in 0..20_000 {
            for byte in &mut bytes {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                *byte = (state >> 61) as u8;
            }
            bytes[0] = 1;
            let _ = parse(&bytes);
        }
        for len in 0..PREFIX + 8 {
            assert_eq!(parse(&bytes[..len]), None);
        }
    }
}
