//! The codes of labelled ids, one id after another: in memory where they fit, else in a temporary file.

use crate::analysis::spill::{Room, SpillFile};
use crate::error::Result;
use crate::interrupt::check_flag;
use std::sync::atomic::AtomicBool;

/// Words before the entries of an id: its groups (two words), its rows, its entries.
const HEAD: usize = 4;
/// Words that are written and read at a time, about: 4 MiB.
const PIECE: usize = 1 << 20;

/// Latent, rows of the id that activate it, and the bits of the sum of its activations over them.
pub type Entry = [u32; 3];

/// An id of the log.
#[derive(Debug, Clone, Copy)]
pub struct Logged<'a> {
    /// Its groups, as bits; never none.
    pub mask: u64,
    /// Its rows: 1, or the residues of a protein.
    pub rows: u32,
    /// Its active latents, rising.
    pub entries: &'a [Entry],
}

/// Ids with their groups and active latents, in the order of the data.
#[derive(Debug)]
pub struct Log {
    room: Room,
    /// Words in memory, at most: half of the room, for what works on them wants as much.
    limit: u64,
    /// Words in memory, in pieces that hold whole ids.
    pieces: Vec<Vec<u32>>,
    /// Their number.
    held: u64,
    /// Pieces that went to the file: place and words.
    written: Vec<(u64, usize)>,
    file: Option<SpillFile>,
}

impl Log {
    /// No ids yet.
    pub fn new(room: Room) -> Self {
        let limit = room.memory / 2 / 4;
        Self { room, limit, pieces: vec![], held: 0, written: vec![], file: None }
    }

    /// Bytes of memory for what works on the log.
    pub fn memory_left(&self) -> u64 {
        self.room.memory / 2
    }

    /// Adds an id.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn push(&mut self, mask: u64, rows: u32, entries: &[Entry]) -> Result<()> {
        let piece = match self.pieces.last_mut() {
            Some(piece) if piece.len() < PIECE => piece,
            _ => {
                self.pieces.push(vec![]);
                let last = self.pieces.len() - 1;
                &mut self.pieces[last]
            }
        };
        piece.extend([mask as u32, (mask >> 32) as u32, rows, entries.len() as u32]);
        piece.extend_from_slice(entries.as_flattened());
        let full = piece.len() >= PIECE;
        if full {
            piece.shrink_to_fit();
        }
        self.held += (HEAD + 3 * entries.len()) as u64;
        // Once there is a file, nothing is gained by filling the memory again.
        if self.held > self.limit || (full && self.file.is_some()) {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.room.file()?),
        };
        for piece in self.pieces.drain(..) {
            self.written.push((file.append(&piece)?, piece.len()));
        }
        self.held = 0;
        Ok(())
    }

    /// Gives `take` every id, in the order of the data.
    ///
    /// # Errors
    /// What the disk refuses; what `take` refuses; [`crate::error::Error::Interrupted`] once `stop` is set.
    pub fn each(&self, stop: &AtomicBool, mut take: impl FnMut(Logged<'_>) -> Result<()>) -> Result<()> {
        let mut take = |id: Logged<'_>| check_flag(stop).and_then(|()| take(id));
        let mut words = vec![];
        for (at, n) in &self.written {
            words.resize(*n, 0);
            if let Some(file) = &self.file {
                file.read(*at, &mut words)?;
            }
            ids(&words, &mut take)?;
        }
        self.pieces.iter().try_for_each(|piece| ids(piece, &mut take))
    }
}

/// Gives `take` the ids of a piece.
fn ids(mut words: &[u32], take: &mut impl FnMut(Logged<'_>) -> Result<()>) -> Result<()> {
    while let [low, high, rows, n, rest @ ..] = words {
        let (entries, others) = rest.split_at(3 * *n as usize);
        let mask = u64::from(*low) | u64::from(*high) << 32;
        take(Logged { mask, rows: *rows, entries: bytemuck::cast_slice(entries) })?;
        words = others;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn ids_come_back_as_they_went_whether_they_fit_or_not() {
        let id = |i: u32| -> (u64, u32, Vec<Entry>) {
            (1 << (i % 64), i + 1, (0..i % 5).map(|j| [j, i, 7 * i]).collect())
        };
        for (n, memory, pieces) in [(300, u64::MAX, 0), (300, 4000, 2), (300, 0, 300), (0, 0, 0)] {
            let mut log = Log::new(Room::new(Some(memory), Path::new("."), []));
            for (mask, rows, entries) in (0..n).map(id) {
                log.push(mask, rows, &entries).unwrap();
            }
            // 3,000 words in all, of which 500 fit.
            assert_eq!(log.written.is_empty(), pieces == 0);
            assert!(log.written.len() >= pieces, "{} pieces", log.written.len());
            for _ in 0..2 {
                let mut at = 0;
                log.each(&AtomicBool::new(false), |got| {
                    let (mask, rows, entries) = id(at);
                    assert_eq!((got.mask, got.rows, got.entries), (mask, rows, &entries[..]));
                    at += 1;
                    Ok(())
                })
                .unwrap();
                assert_eq!(at, n);
            }
        }
    }
}
