//! The first pass over rows that stay in their files: checks every value, and finds the mean and the variance of the
//! training rows on the way.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::BadRows;
use super::in_place::Files;
use super::load::{Judge, Located, check_values};
use super::streamed::readers;
use crate::error::{Error, Result};
use crate::interrupt::{self, Requests};
use crate::rows::{Moments, Values, add_rows, add_squares};

/// Bytes that are read and looked at together.
const BYTES: usize = 32 << 20;
/// Bytes of float32 rows that are added up together.
const SUM_BYTES: usize = 16 << 20;
/// Version of what a run keeps.
const SCHEMA: u32 = 1;

/// Told how many rows were seen, of how many.
pub type Seen<'a> = &'a mut dyn FnMut(usize, usize);

/// What the first pass over rows that stay in their files found. A run keeps it: nobody need pass over the same files
/// again to go on with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstPass {
    schema: u32,
    files: Vec<FileStamp>,
    /// Hash of ids, width and type of all rows whose ids can be used.
    rows: u64,
    /// Rows of the files that hold a value which is not finite: first ones and numbers of them.
    bad: Vec<(u32, u32)>,
    /// The first of them, as its error would say.
    example: Option<String>,
    /// Number of the other rows that hold only zeros, and the first of them.
    zeros: Option<(usize, u32)>,
    moments: Vec<Moments>,
}

/// What changes when somebody writes to a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct FileStamp {
    pub path: PathBuf,
    /// Modification time in seconds, and the nanoseconds beyond them.
    pub modified: (i64, i64),
    pub bytes: u64,
}

impl FirstPass {
    /// Rows of the files that hold a value which is not finite, ascending.
    pub(super) fn bad(&self) -> impl Iterator<Item = usize> {
        self.bad.iter().flat_map(|&(first, n)| first as usize..first as usize + n as usize)
    }

    /// Number of rows that hold only zeros, and the first of them as the files count.
    pub(super) fn zeros(&self) -> Option<(usize, usize)> {
        self.zeros.map(|(n, first)| (n, first as usize))
    }

    pub(super) fn example(&self) -> Option<&str> {
        self.example.as_deref()
    }

    /// Mean and variance of the sets of rows that were asked for.
    pub(super) fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Whether this is of the same files, which nobody wrote to since, and says what is asked now.
    pub(super) fn is_of(&self, files: &Files, rows: u64, bad_rows: BadRows) -> bool {
        let Self { schema, files: stamps, rows: of, bad, .. } = self;
        let usable = bad.is_empty() || bad_rows != BadRows::Stop;
        *schema == SCHEMA
            && *of == rows
            && usable
            && files.stamps().eq(stamps)
            && self.bad().all(|row| row < files.all())
    }
}

/// Passes over all rows of `files`. `rows` is the hash of those whose ids can be used; each of `sets`, of which mean and
/// variance are found, has some of these by their numbers, ascending.
pub(super) fn pass(
    files: &Files,
    rows: u64,
    sets: &[&[u32]],
    judge: &mut Judge,
    seen: Seen<'_>,
) -> Result<FirstPass> {
    let (all, d) = (files.all(), files.d_in());
    let pieces = files.pieces();
    let sums = sets.iter().map(|rows| Sums::of(rows)).collect();
    let mut found = Found { sums, ..Found::default() };
    let step = (BYTES / (d * files.dtype().size()).max(1)).max(1);
    let blocks = (0..all).step_by(step).map(|first| first..all.min(first + step));
    let before = judge.skipped.examples.len();
    ahead(files, &pieces, blocks.clone(), |rows, values| {
        let mut keep = files.marks(rows.clone());
        let usable = keep.clone();
        check_values(&pieces, values, d, |row| rows.start + row, &mut keep, judge)?;
        found.add(rows.clone(), &usable, &keep, values, d);
        seen(rows.end, all);
        Ok(())
    })?;
    let example = judge.skipped.examples.get(before).cloned();
    let stamps = files.stamps().cloned().collect();
    let Found { bad, zeros, sums, .. } = found;
    let moments = sums.into_iter().filter_map(Sums::moments).collect();
    Ok(FirstPass { schema: SCHEMA, files: stamps, rows, bad, example, zeros, moments })
}

/// Calls `take` with the values of each of `blocks`, in their order, while another thread reads the next one.
fn ahead(
    files: &Files,
    pieces: &[Located<'_>],
    blocks: impl Iterator<Item = Range<usize>> + Clone + Send,
    mut take: impl FnMut(Range<usize>, &Values) -> Result<()>,
) -> Result<()> {
    // Nothing waits in it: one block is looked at and one is read.
    let (send, receive): (SyncSender<Result<Values>>, Receiver<_>) = sync_channel(0);
    let requests = Requests::here();
    std::thread::scope(|scope| {
        let coming = blocks.clone();
        scope.spawn(move || {
            let readers = readers();
            let read = |rows: Range<usize>| match &readers {
                Some(readers) => readers.install(|| files.read_from(pieces, rows)),
                None => files.read_from(pieces, rows),
            };
            for rows in coming {
                let values = requests.check().and_then(|()| read(rows));
                let last = values.is_err();
                if send.send(values).is_err() || last {
                    return;
                }
            }
        });
        // Dropped before the other thread is waited for: it then stops.
        let receive = receive;
        for rows in blocks {
            interrupt::check()?;
            let values = receive
                .recv()
                .map_err(|_| Error::Failed("reading rows ended early; please report this".into()))??;
            take(rows, &values)?;
        }
        Ok(())
    })
}

/// What was found so far.
#[derive(Default)]
struct Found<'a> {
    /// Rows with usable ids that were seen, and how many of them are bad.
    usable: u32,
    n_bad: u32,
    bad: Vec<(u32, u32)>,
    zeros: Option<(usize, u32)>,
    sums: Vec<Sums<'a>>,
}

impl Found<'_> {
    /// Adds `rows` of the files; `usable` are those whose ids can be used, and `keep` those of them that are finite.
    fn add(&mut self, rows: Range<usize>, usable: &[bool], keep: &[bool], values: &Values, d: usize) {
        for row in (0..rows.len()).filter(|&row| usable[row]) {
            for sums in &mut self.sums {
                sums.see(self.usable, keep[row].then_some((row, self.usable - self.n_bad)));
            }
            if !keep[row] {
                self.n_bad += 1;
                self.add_bad((rows.start + row) as u32);
            }
            self.usable += 1;
        }
        let zeros: Vec<usize> = values.zero_rows(d).into_iter().filter(|&row| keep[row]).collect();
        if let Some(&first) = zeros.first() {
            let (n, _) = self.zeros.get_or_insert((0, (rows.start + first) as u32));
            *n += zeros.len();
        }
        self.sums.iter_mut().for_each(|sums| sums.add(values, d));
    }

    fn add_bad(&mut self, row: u32) {
        match self.bad.last_mut() {
            Some((first, n)) if *first + *n == row => *n += 1,
            _ => self.bad.push((row, 1)),
        }
    }
}

/// Sums over a set of rows.
struct Sums<'a> {
    /// Rows of the set that were not seen yet.
    left: &'a [u32],
    /// Rows of the set in the block that is looked at.
    here: Vec<usize>,
    /// Hash of the numbers that rows of the set have without the bad ones, and how many these are.
    rows: Xxh3,
    n: usize,
    /// Sum of the rows (D).
    sum: Vec<f64>,
    /// Mean of the first of them (D), about which squares are taken: little is lost where columns are far off zero.
    centre: Vec<f64>,
    squares: f64,
}

impl<'a> Sums<'a> {
    fn of(rows: &'a [u32]) -> Self {
        let (here, sum, centre) = (vec![], vec![], vec![]);
        Self { left: rows, here, rows: Xxh3::new(), n: 0, sum, centre, squares: 0.0 }
    }

    /// Sees row `number`, which is at a place in the block and has another number without bad rows, if it is none.
    fn see(&mut self, number: u32, good: Option<(usize, u32)>) {
        if self.left.first() != Some(&number) {
            return;
        }
        self.left = &self.left[1..];
        if let Some((place, number)) = good {
            self.here.push(place);
            self.rows.update(&number.to_ne_bytes());
            self.n += 1;
        }
    }

    /// Adds the rows that were seen, of the block `values`.
    fn add(&mut self, values: &Values, d: usize) {
        let here = std::mem::take(&mut self.here);
        let together = (SUM_BYTES / (4 * d).max(1)).max(1);
        let mut wide = vec![0.0f32; here.len().min(together) * d];
        for rows in here.chunks(together) {
            let wide = &mut wide[..rows.len() * d];
            let each = wide.par_chunks_exact_mut(d).zip(rows).with_min_len(16);
            each.for_each(|(out, &row)| values.row_into(row, d, out));
            if self.sum.is_empty() {
                (self.sum, self.centre) = (vec![0.0; d], vec![0.0; d]);
                add_rows(&mut self.centre, wide);
                self.centre.iter_mut().for_each(|sum| *sum /= rows.len() as f64);
            }
            add_rows(&mut self.sum, wide);
            add_squares(&mut self.squares, wide, &self.centre);
        }
    }

    /// Mean and variance: with `m` the mean and `c` another row, `sum (x - m)^2 = sum (x - c)^2 - n (m - c)^2`.
    fn moments(self) -> Option<Moments> {
        let Self { rows, n, sum: mut mean, centre, squares, .. } = self;
        if n == 0 {
            return None;
        }
        let n = n as f64;
        mean.iter_mut().for_each(|sum| *sum /= n);
        let off: f64 = mean.iter().zip(&centre).map(|(mean, centre)| (mean - centre).powi(2)).sum();
        let variance = (squares - n * off).max(0.0) / (n * mean.len() as f64);
        Some(Moments { rows: rows.digest(), mean, variance })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::File;
    use std::path::Path;

    use super::*;
    use crate::data::{Embeddings, LoadOptions};
    use crate::rows::{RowSource, hash_rows, mean_row, variance_about};

    const D: usize = 70;
    const N: usize = 3000;

    /// Rows far off zero, some of which are zeros, and the given ones not finite.
    fn write(path: &Path, bad: &[usize]) {
        use npyz::WriterBuilder;
        let file = File::create(path).unwrap();
        let writer = npyz::WriteOptions::new().default_dtype().shape(&[N as u64, D as u64]).writer(file);
        let mut writer = writer.begin_nd().unwrap();
        for row in 0..N {
            for column in 0..D {
                let value = 1000.0 + ((row * D + column) as f32 * 0.37).sin();
                let value = if row % 500 == 499 { 0.0 } else { value };
                writer.push(&if bad.contains(&row) && column == 3 { f32::NAN } else { value }).unwrap();
            }
        }
        writer.finish().unwrap();
    }

    fn open(path: &Path) -> Embeddings {
        let options = LoadOptions { bad_rows: BadRows::Skip, ..LoadOptions::default() };
        Embeddings::open_within(&[path.to_owned()], &options, 100_000).unwrap()
    }

    fn look(data: &mut Embeddings, sets: &[&[u32]], known: Vec<FirstPass>) -> usize {
        let mut seen = 0;
        data.look_through(sets, known, &mut |done, _| seen = done).unwrap();
        seen
    }

    #[test]
    fn one_pass_finds_bad_rows_zeros_and_the_moments_of_the_rows_that_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        write(&path, &[0, 1, 700, 2999]);
        let mut data = open(&path);
        // Counted before bad rows are known: the second set has two of them.
        let sets: [Vec<u32>; 3] = [(2..N as u32 - 1).collect(), (0..N as u32).step_by(7).collect(), vec![]];
        assert_eq!(look(&mut data, &sets.each_ref().map(Vec::as_slice), vec![]), N);
        assert_eq!((data.n_rows(), data.skipped().non_finite, data.zero_rows()), (N - 4, 4, 5));
        let without = |rows: &[u32]| -> Vec<u32> {
            let bad = [0, 1, 700, 2999];
            let good = rows.iter().filter(|row| !bad.contains(*row));
            good.map(|row| row - bad.iter().filter(|bad| *bad < row).count() as u32).collect()
        };
        for set in &sets[..2] {
            let rows = without(set);
            let found = data.moments(&rows).unwrap();
            assert!(found.mean == mean_row(&data, &rows).unwrap());
            let exact = variance_about(&data, &rows, &found.mean).unwrap() / (rows.len() * D) as f64;
            assert!((found.variance / exact - 1.0).abs() < 1e-9, "{} {exact}", found.variance);
        }
        assert_eq!(data.found().unwrap().moments.len(), 2);
        assert!(data.moments(&[1, 2]).is_none());
    }

    #[test]
    fn rows_in_less_memory_are_the_same_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        write(&path, &[5, 6, 700]);
        let mut data = open(&path);
        look(&mut data, &[], vec![]);
        let values = |data: &Embeddings| {
            let rows: Vec<u32> = (0..data.n_rows() as u32).collect();
            let mut out = vec![0.0f32; rows.len() * D];
            data.read(&rows, &mut out).unwrap();
            (data.fingerprint().unwrap(), out)
        };
        let (before, window) = (values(&data), data.window().unwrap());
        let last = data.n_rows() as u32 - 1;
        let blocks = data.block_of(last);
        data.narrow(20_000).unwrap();
        assert!(values(&data) == before);
        assert!(data.window().unwrap() * 4 < window && data.block_of(last) > blocks);
        assert!(data.bytes() <= 20_000);
    }

    #[test]
    fn what_was_found_holds_until_the_file_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        write(&path, &[5, 6, 7, 90]);
        let mut first = open(&path);
        let train: Vec<u32> = (0..N as u32).step_by(3).collect();
        look(&mut first, &[&train], vec![]);
        let text = serde_json::to_string(first.found().unwrap()).unwrap();
        let known: FirstPass = serde_json::from_str(&text).unwrap();
        assert_eq!(&known, first.found().unwrap());
        let mut second = open(&path);
        assert_eq!(look(&mut second, &[], vec![known.clone()]), 0, "no row is looked at");
        assert_eq!((second.index(), second.skipped()), (first.index(), first.skipped()));
        assert_eq!((second.warnings(), second.zero_rows()), (first.warnings(), first.zero_rows()));
        assert_eq!(second.fingerprint().unwrap(), first.fingerprint().unwrap());
        let rows: Vec<u32> = (0..second.n_rows() as u32).collect();
        let read = |data: &Embeddings| {
            let mut out = vec![0.0f32; rows.len() * D];
            data.read(&rows, &mut out).unwrap();
            out
        };
        assert!(read(&second) == read(&first));
        assert_eq!(
            known.moments[0].rows,
            hash_rows(&{
                let good = train.iter().filter(|&&row| ![5, 6, 7, 90].contains(&row));
                good.map(|&row| row - [5, 6, 7, 90].iter().filter(|&&bad| bad < row).count() as u32)
                    .collect::<Vec<_>>()
            })
        );
        // Rows that were dropped are an error where a person no longer wants to drop any.
        let mut strict =
            Embeddings::open_within(std::slice::from_ref(&path), &LoadOptions::default(), 100_000).unwrap();
        assert!(strict.look_through(&[], vec![known.clone()], &mut |_, _| {}).is_err());
        write(&path, &[5, 6, 7]);
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        let mut third = open(&path);
        assert_eq!(look(&mut third, &[], vec![known]), N);
        assert_eq!(third.skipped().non_finite, 3);
    }
}
