//! Codes by latent, as tests of labels and histograms want them: in memory where they fit, else in a temporary file, in
//! runs that are each sorted by latent.

use crate::analysis::spill::{Room, SpillFile, ranges};
use crate::error::{Error, Result};
use crate::text::{bytes, thousands};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Words of an entry while it is gathered: latent, tag, the bits of the value.
const GATHERED: usize = 3;
/// Words of an entry that has its place by latent: tag, the bits of the value.
const PLACED: usize = 2;
/// Entries that there is memory for at first.
const FEW: usize = 1 << 16;

/// Takes entries in any order.
#[derive(Debug)]
pub struct Collect {
    n_latents: usize,
    room: Room,
    /// Entries in memory, at most.
    limit: usize,
    words: Vec<u32>,
    /// Entries of each latent (M).
    counts: Vec<u64>,
    /// Places of the runs in the file.
    runs: Vec<u64>,
    file: Option<SpillFile>,
}

impl Collect {
    /// Nothing yet, of `n_latents` latents.
    pub fn new(n_latents: usize, room: Room) -> Self {
        let fitting = usize::try_from(room.memory / 4).unwrap_or(usize::MAX) / GATHERED;
        Self {
            n_latents,
            room,
            // A run has a table of the latents, which is not to be longer than the run itself.
            limit: fitting.max(n_latents),
            words: vec![],
            counts: vec![0; n_latents],
            runs: vec![],
            file: None,
        }
    }

    /// Adds an activation of `latent` with a tag that says whose it is.
    ///
    /// # Errors
    /// Memory that the system refuses; what the disk refuses where entries are spilled.
    pub fn push(&mut self, latent: u32, tag: u32, value: f32) -> Result<()> {
        if self.words.len() + GATHERED > self.words.capacity() {
            self.make_room()?;
        }
        self.counts[latent as usize] += 1;
        self.words.extend_from_slice(&[latent, tag, value.to_bits()]);
        Ok(())
    }

    /// More memory, or a run more on the disk.
    fn make_room(&mut self) -> Result<()> {
        let n = self.words.len() / GATHERED;
        if n >= self.limit {
            return self.spill();
        }
        let more = n.max(FEW).min(self.limit - n);
        self.words.try_reserve_exact(GATHERED * more).map_err(|_| {
            let there = bytes(4 * (GATHERED * n) as u64);
            Error::Failed(format!("{more} more codes do not fit in memory; give --memory {there} or less"))
        })
    }

    /// Sorts what is in memory by latent; where each latent begins, and the number of entries at the end.
    fn sort(&mut self) -> Vec<u64> {
        let entries: &mut [[u32; GATHERED]] = bytemuck::cast_slice_mut(&mut self.words);
        entries.par_sort_unstable();
        let mut index = vec![0u64; self.n_latents + 1];
        for [latent, ..] in entries.iter() {
            index[*latent as usize + 1] += 1;
        }
        for j in 0..self.n_latents {
            index[j + 1] += index[j];
        }
        // The latent is known by the place from here on.
        let n = entries.len();
        for i in 0..n {
            self.words.copy_within(GATHERED * i + 1..GATHERED * (i + 1), PLACED * i);
        }
        self.words.truncate(PLACED * n);
        index
    }

    /// Writes what is in memory to the disk.
    fn spill(&mut self) -> Result<()> {
        let index = self.sort();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.room.file()?),
        };
        self.runs.push(file.append(bytemuck::cast_slice(&index))?);
        file.append(&self.words)?;
        self.words.clear();
        Ok(())
    }

    /// All entries by latent.
    ///
    /// # Errors
    /// As [`Collect::push`].
    pub fn finish(mut self) -> Result<ByLatent> {
        let stored = if self.file.is_some() {
            self.spill()?;
            self.words = vec![];
            self.file.take()
        } else {
            None
        };
        let stored = match stored {
            Some(file) => Stored::Disk { file, runs: self.runs },
            None => {
                let index = self.sort();
                self.words.shrink_to_fit();
                Stored::Memory { index, words: self.words }
            }
        };
        // Half of the memory: what works on entries wants as much.
        let at_once = self.room.memory / 2 / (4 * PLACED as u64);
        Ok(ByLatent { counts: self.counts, stored, at_once })
    }
}

#[derive(Debug)]
enum Stored {
    /// Where each latent begins (M + 1), and the entries.
    Memory { index: Vec<u64>, words: Vec<u32> },
    /// Each run is such an index, and the entries.
    Disk { file: SpillFile, runs: Vec<u64> },
}

/// Codes by latent: each entry a tag and an activation above 0.
#[derive(Debug)]
pub struct ByLatent {
    /// Entries of each latent (M).
    counts: Vec<u64>,
    stored: Stored,
    /// Entries that are read at a time, unless a single latent has more.
    at_once: u64,
}

impl ByLatent {
    /// Number of latents, M.
    pub fn n_latents(&self) -> usize {
        self.counts.len()
    }

    /// Number of entries.
    pub fn n_entries(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All latents, in ranges whose entries fit in memory together; at least one latent each.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        match &self.stored {
            Stored::Memory { .. } => vec![0..self.n_latents()],
            Stored::Disk { .. } => ranges(&self.counts, self.at_once),
        }
    }

    /// The entries of one of [`ByLatent::ranges`].
    ///
    /// # Errors
    /// Memory that the system refuses; what the disk refuses.
    pub fn read(&self, latents: Range<usize>) -> Result<Entries<'_>> {
        let parts = match &self.stored {
            Stored::Memory { index, words } => {
                let index = Cow::Borrowed(&index[latents.start..=latents.end]);
                let entries = index[0] as usize..index[latents.len()] as usize;
                let words = &words[PLACED * entries.start..PLACED * entries.end];
                vec![Part { index, words: Cow::Borrowed(words) }]
            }
            Stored::Disk { file, runs } => {
                let part = |&run: &u64| self.read_run(file, run, &latents);
                runs.iter().map(part).collect::<Result<_>>()?
            }
        };
        Ok(Entries { first: latents.start, parts })
    }

    fn read_run(&self, file: &SpillFile, run: u64, latents: &Range<usize>) -> Result<Part<'static>> {
        let mut index = vec![0u64; latents.len() + 1];
        file.read(run + 8 * latents.start as u64, bytemuck::cast_slice_mut(&mut index))?;
        let n = PLACED * (index[latents.len()] - index[0]) as usize;
        let mut words = vec![];
        words.try_reserve_exact(n).map_err(|_| {
            Error::Failed(format!(
                "{} codes do not fit in memory; lower --memory, or give fewer rows",
                thousands((n / PLACED) as u64)
            ))
        })?;
        words.resize(n, 0);
        let entries = run + 8 * (self.n_latents() as u64 + 1);
        file.read(entries + 4 * PLACED as u64 * index[0], &mut words)?;
        Ok(Part { index: Cow::Owned(index), words: Cow::Owned(words) })
    }

    /// Gives `take` every activation.
    ///
    /// # Errors
    /// As [`ByLatent::read`].
    pub fn each_value(&self, mut take: impl FnMut(f32)) -> Result<()> {
        for latents in self.ranges() {
            let entries = self.read(latents)?;
            let values = entries.parts.iter().flat_map(|part| part.words.chunks_exact(PLACED));
            values.for_each(|entry| take(f32::from_bits(entry[1])));
        }
        Ok(())
    }
}

/// The entries of a run for some latents.
#[derive(Debug)]
struct Part<'a> {
    /// Where each of the latents begins in the run, and where the last ends.
    index: Cow<'a, [u64]>,
    /// The entries.
    words: Cow<'a, [u32]>,
}

/// Entries of some latents.
#[derive(Debug)]
pub struct Entries<'a> {
    first: usize,
    parts: Vec<Part<'a>>,
}

impl Entries<'_> {
    /// Tags and activations of latent `j`, in no order that means anything but always the same.
    ///
    /// # Panics
    /// If `j` is not one of the latents.
    pub fn latent(&self, j: usize) -> impl Iterator<Item = (u32, f32)> {
        let at = j - self.first;
        self.parts.iter().flat_map(move |part| {
            let place = |i: usize| PLACED * (part.index[i] - part.index[0]) as usize;
            let entries = part.words[place(at)..place(at + 1)].chunks_exact(PLACED);
            entries.map(|entry| (entry[0], f32::from_bits(entry[1])))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Every latent's entries, sorted, by way of a memory of so many bytes; and how many runs and ranges there were.
    fn gathered(
        entries: &[(u32, u32, f32)],
        n_latents: usize,
        memory: u64,
    ) -> (Vec<Vec<(u32, u32)>>, [usize; 2]) {
        let mut collect = Collect::new(n_latents, Room::new(Some(memory), Path::new("."), []));
        entries.iter().for_each(|&(latent, tag, value)| collect.push(latent, tag, value).unwrap());
        let codes = collect.finish().unwrap();
        assert_eq!(codes.n_entries(), entries.len() as u64);
        let mut out = vec![];
        let ranges = codes.ranges();
        for latents in ranges.clone() {
            let read = codes.read(latents.clone()).unwrap();
            for j in latents {
                let mut of: Vec<(u32, u32)> = read.latent(j).map(|(tag, v)| (tag, v.to_bits())).collect();
                of.sort_unstable();
                out.push(of);
            }
        }
        let mut n = 0;
        codes.each_value(|_| n += 1).unwrap();
        assert_eq!(n, entries.len());
        let runs = match &codes.stored {
            Stored::Memory { .. } => 0,
            Stored::Disk { runs, .. } => runs.len(),
        };
        (out, [runs, ranges.len()])
    }

    #[test]
    fn entries_are_the_same_whether_they_fit_or_not() {
        let n_latents = 7;
        let entry = |i: u32| (i.wrapping_mul(2_654_435_761) % 6, i, 0.5 + i as f32);
        for n in [0, 1, 6, 7, 8, 700, 70_001] {
            let entries: Vec<(u32, u32, f32)> = (0..n).map(entry).collect();
            let mut want = vec![vec![]; n_latents];
            entries.iter().for_each(|(latent, tag, v)| want[*latent as usize].push((*tag, v.to_bits())));
            let (whole, runs) = gathered(&entries, n_latents, u64::MAX);
            assert_eq!((whole == want, runs), (true, [0, 1]));
            for memory in [0, 12 * 64, 12 * 1000] {
                let (spilled, [runs, ranges]) = gathered(&entries, n_latents, memory);
                assert!(spilled == want, "{n} entries in {memory} bytes");
                let limit = (memory as usize / 12).max(n_latents);
                assert_eq!(runs > 1, n as usize > limit, "{runs} runs of {n} entries");
                assert_eq!(ranges > 1, runs > 1, "{ranges} ranges of {n} entries");
            }
        }
    }
}
