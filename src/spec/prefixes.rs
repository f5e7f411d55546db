//! Numbers of latents that reconstruct on their own.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Most prefixes of a model.
pub const MOST_PREFIXES: usize = 16;

/// The prefixes of a Matryoshka model: rising numbers of latents `m_1 < ... < m_P`, the last of which is all, M. Empty
/// where only all latents together reconstruct.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u32>", into = "Vec<u32>")]
pub struct Prefixes {
    ends: [u32; MOST_PREFIXES],
    len: usize,
}

impl Prefixes {
    /// Of these numbers of latents.
    ///
    /// # Errors
    /// A sentence that says which number does not rise, or that there are too many.
    pub fn new(ends: &[u32]) -> Result<Self, String> {
        if ends.len() > MOST_PREFIXES {
            return Err(format!("{} prefixes are more than {MOST_PREFIXES}", ends.len()));
        }
        let mut before = 0;
        for &end in ends {
            if end <= before {
                return Err(format!("prefixes must rise from at least 1, and {end} comes after {before}"));
            }
            before = end;
        }
        let mut all = Self { len: ends.len(), ..Self::default() };
        all.ends[..ends.len()].copy_from_slice(ends);
        Ok(all)
    }

    /// Those of the published demo, for `n_latents`: M/32, 3M/32, 7M/32, 15M/32, M, as far as they differ.
    pub fn of(n_latents: usize) -> Self {
        let mut ends: Vec<u32> = [1, 3, 7, 15].map(|share| (share * n_latents / 32) as u32).to_vec();
        ends.retain(|&end| end > 0);
        ends.push(n_latents as u32);
        // Rising, since each share is larger than the one before by at least its own size.
        ends.dedup();
        Self::new(&ends).unwrap_or_default()
    }

    /// True where only all latents together reconstruct.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of prefixes, P.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The numbers of latents.
    pub fn ends(&self) -> &[u32] {
        &self.ends[..self.len]
    }

    /// Reconstructions in a step: P, or 1 without prefixes.
    pub fn parts(&self) -> usize {
        self.len.max(1)
    }

    /// The segment of a latent: the first prefix that has it; 0 without prefixes.
    pub fn segment(&self, latent: usize) -> usize {
        self.ends().iter().position(|&end| latent < end as usize).unwrap_or(0)
    }

    /// The latents of each segment, of `n_latents` in all; without prefixes there is one.
    pub fn segments(&self, n_latents: usize) -> Vec<Range<usize>> {
        let all = [n_latents as u32];
        let ends = if self.is_empty() { &all[..] } else { self.ends() };
        let starts = [0].into_iter().chain(ends.iter().copied());
        starts.zip(ends).map(|(from, &to)| from as usize..to as usize).collect()
    }
}

impl fmt::Display for Prefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.ends().iter().map(u32::to_string).collect();
        f.pad(&texts.join(","))
    }
}

impl fmt::Debug for Prefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ends()).finish()
    }
}

impl FromStr for Prefixes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            part.trim()
                .parse()
                .map_err(|_| format!("`{part}` is not a number of latents: give rising numbers with commas"))
        };
        Self::new(&text.split(',').map(number).collect::<Result<Vec<u32>, String>>()?)
    }
}

impl TryFrom<Vec<u32>> for Prefixes {
    type Error = String;

    fn try_from(ends: Vec<u32>) -> Result<Self, String> {
        Self::new(&ends)
    }
}

impl From<Prefixes> for Vec<u32> {
    fn from(prefixes: Prefixes) -> Self {
        prefixes.ends().to_vec()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_rise_and_have_one_segment_each() {
        let three: Prefixes = "2,5, 9".parse().unwrap();
        assert_eq!(three.segments(9), [0..2, 2..5, 5..9]);
        assert_eq!([0, 1, 2, 4, 5, 8].map(|j| three.segment(j)), [0, 0, 1, 1, 2, 2]);
        assert_eq!(three.to_string(), "2,5,9");
        assert_eq!(serde_json::to_string(&three).unwrap(), "[2,5,9]");
        assert_eq!(serde_json::from_str::<Prefixes>("[2,5,9]").unwrap(), three);
        for wrong in ["0,3", "3,3", "5,2", "1,x", "", "-1"] {
            assert!(wrong.parse::<Prefixes>().is_err(), "{wrong}");
        }
        assert!(Prefixes::new(&(1..=17).collect::<Vec<u32>>()).is_err());
    }

    #[test]
    fn the_default_ones_halve_what_is_left_and_end_with_all() {
        assert_eq!(Prefixes::of(8192).ends(), [256, 768, 1792, 3840, 8192]);
        for m in 1..70 {
            let ends = Prefixes::of(m);
            assert_eq!(ends.ends().last(), Some(&(m as u32)), "{m}");
        }
        assert_eq!((Prefixes::default().parts(), Prefixes::default().segment(7)), (1, 0));
        assert_eq!(Prefixes::default().segments(7), Prefixes::new(&[7]).unwrap().segments(7));
    }
}
