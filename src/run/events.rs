//! The figures of `metrics.csv` as events for TensorBoard.
//!
//! A file is a sequence of records: the length of the data (u64), its checksum, the data, their checksum, little-endian.
//! The data are protocol buffers. The checksum is CRC-32C, rotated and offset, because a plain CRC of data that contain CRCs
//! is weak. Layout: TensorFlow, `core/lib/io/record_writer.cc` and `core/util/event.proto`.

use crate::error::{Error, Result};
use crate::train::Observer;
use crate::train::metrics::MetricRow;
use prost::Message;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    // Optional, so that zeros are written.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Appends an event for every evaluation, so that TensorBoard follows while the run goes on.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
    /// Step of the last event.
    last: Option<i64>,
}

impl EventFile {
    /// Opens or makes the file at `path`, to go on after its last whole event: a killed process may have left half of one.
    ///
    /// # Errors
    /// What the file system cannot do.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io(path, "open"))?;
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        let (mut whole, mut last) = (0, None);
        while let Some((event, end)) = event_at(&bytes, whole) {
            whole = end;
            last = event.summary.is_some().then_some(event.step).or(last);
        }
        file.set_len(whole as u64).map_err(Error::io(path, "shorten"))?;
        file.seek(SeekFrom::Start(whole as u64)).map_err(Error::io(path, "write"))?;
        let mut events = Self { path: path.to_owned(), file, last };
        if whole == 0 {
            events.append(&Event { file_version: Some("brain.Event:2".into()), ..now(0) })?;
        }
        Ok(events)
    }

    fn append(&mut self, event: &Event) -> Result<()> {
        self.file.write_all(&record(&event.encode_to_vec())).map_err(Error::io(&self.path, "write"))
    }
}

impl Observer for EventFile {
    fn evaluated(&mut self, rows: &[MetricRow]) -> Result<()> {
        for row in rows {
            let step = row.step as i64;
            // A resumed run repeats evaluations since its checkpoint, with the same figures.
            if self.last.is_some_and(|last| last >= step) {
                continue;
            }
            let value = |(name, value): (&str, Option<f64>)| {
                Some(Value { tag: tag(name), simple_value: Some(value? as f32) })
            };
            let summary = Summary { value: row.figures().into_iter().filter_map(value).collect() };
            self.append(&Event { summary: Some(summary), ..now(step) })?;
            self.last = Some(step);
        }
        Ok(())
    }
}

/// `val_fvu` is `val/fvu` in TensorBoard, which shows together what is before a slash.
fn tag(name: &str) -> String {
    match name.split_once('_') {
        Some((group @ ("train" | "val" | "test" | "loss"), figure)) => format!("{group}/{figure}"),
        _ => name.to_owned(),
    }
}

fn now(step: i64) -> Event {
    let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    Event { wall_time, step, file_version: None, summary: None }
}

fn masked_checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    [&len[..], &masked_checksum(&len), data, &masked_checksum(data)].concat()
}

/// The event whose record begins at `at`, and where the next begins; `None` if the record is not whole.
fn event_at(bytes: &[u8], at: usize) -> Option<(Event, usize)> {
    let rest = bytes.get(at..)?;
    let len = usize::try_from(u64::from_le_bytes(rest.get(..8)?.try_into().ok()?)).ok()?;
    let data = rest.get(12..len.checked_add(12)?)?;
    let whole = record(data);
    (rest.get(..whole.len())? == whole).then(|| Event::decode(data).ok().zip(Some(at + whole.len())))?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::train::metrics::{LossParts, Quality};

    fn row(step: u64) -> MetricRow {
        let quality = Quality {
            mse: 0.5,
            mae: 0.25,
            fvu: 0.125,
            l0: 8.0,
            cosine: 0.0,
            rows: 4,
            fvu_by_prefix: Default::default(),
        };
        MetricRow {
            step,
            epoch: 0.5,
            tau: 1.0,
            alpha: 0.0,
            lr: 1e-3,
            rows_per_second: 10.0,
            train_loss: Some(step as f64),
            parts: LossParts::default(),
            train: Some(quality),
            val: Some(quality),
            test: None,
            dead_fraction: 0.0,
        }
    }

    fn steps(path: &Path) -> Vec<i64> {
        let (bytes, mut at, mut found) = (std::fs::read(path).unwrap(), 0, vec![]);
        while let Some((event, end)) = event_at(&bytes, at) {
            found.extend(event.summary.is_some().then_some(event.step));
            at = end;
        }
        assert_eq!(at, bytes.len(), "only whole records");
        found
    }

    #[test]
    fn a_file_that_was_cut_is_gone_on_with_after_its_last_whole_event() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        EventFile::open(&path).unwrap().evaluated(&[row(10), row(20)]).unwrap();
        assert_eq!(steps(&path), [10, 20]);
        let whole = std::fs::read(&path).unwrap();
        for cut in [1, 3, 20] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let mut again = EventFile::open(&path).unwrap();
            assert_eq!(steps(&path), [10]);
            again.evaluated(&[row(10), row(20)]).unwrap();
            again.evaluated(&[row(10), row(20), row(30)]).unwrap();
            assert_eq!(steps(&path), [10, 20, 30]);
        }
    }

    #[test]
    fn zeros_are_written_and_what_is_missing_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        EventFile::open(&path).unwrap().evaluated(&[row(7)]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (first, next) = event_at(&bytes, 0).unwrap();
        assert_eq!(first.file_version.as_deref(), Some("brain.Event:2"));
        let values = event_at(&bytes, next).unwrap().0.summary.unwrap().value;
        let value =
            |tag: &str| values.iter().find(|value| value.tag == tag).and_then(|value| value.simple_value);
        assert_eq!(value("val/fvu"), Some(0.125));
        assert_eq!(value("val/cosine"), Some(0.0));
        assert_eq!((value("train/loss"), value("lr")), (Some(7.0), Some(1e-3)));
        assert_eq!((value("test/fvu"), value("loss/recon")), (None, None));
    }

    /// Computed with tensorboard 2.21 (`tensorboard.compat.tensorflow_stub.pywrap_tensorflow.masked_crc32c`).
    #[test]
    fn the_checksum_is_tensorboards() {
        assert_eq!(masked_checksum(b"123456789"), 0xc78a_b0e5_u32.to_le_bytes());
    }
}
