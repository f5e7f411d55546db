//! The scores of many rows that have a place, and the first that has none any more.

/// Keeps the `places` + 1 largest values above a floor of all that it is shown.
#[derive(Debug)]
pub struct Largest {
    places: usize,
    floor: f32,
    /// Smaller values are not among them.
    bound: f32,
    values: Vec<f32>,
}

impl Largest {
    /// With so many places, for values above `floor`.
    pub fn above(floor: f32, places: usize) -> Self {
        Self { places, floor, bound: floor, values: vec![] }
    }

    /// Looks at more values.
    pub fn add(&mut self, values: &[f32]) {
        for part in values.chunks(1 << 16) {
            self.values.extend(part.iter().copied().filter(|&v| v > self.bound));
            if self.values.len() > 2 * (self.places + 1) {
                self.cut();
            }
        }
    }

    fn cut(&mut self) {
        if self.values.len() > self.places {
            let (_, least, _) = self.values.select_nth_unstable_by(self.places, |a, b| b.total_cmp(a));
            self.bound = *least;
            self.values.truncate(self.places + 1);
        }
    }

    /// The `places` + 1 largest values, and the floor where there are fewer; none are kept from here on.
    pub fn take(&mut self) -> Vec<f32> {
        self.cut();
        self.values.resize(self.places + 1, self.floor);
        self.bound = self.floor;
        std::mem::take(&mut self.values)
    }

    /// The largest value that has no place: as many as there are places, or fewer where some are equal, lie above it. The
    /// floor where all values above it have one.
    pub fn next(mut self) -> f32 {
        if self.values.len() > self.places {
            self.cut();
            return self.values[self.places];
        }
        self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::Largest;

    #[test]
    fn the_first_value_without_a_place_is_that_of_a_full_sort() {
        let values: Vec<f32> =
            (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 - 8e6).collect();
        let mut sorted = values.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for places in [0, 1, 77, 5000, 80_000, 199_999, 300_000] {
            let mut largest = Largest::above(0.0, places);
            values.chunks(30_001).for_each(|part| largest.add(part));
            let want = sorted.get(places).copied().filter(|&v| v > 0.0).unwrap_or(0.0);
            assert_eq!(largest.next(), want, "{places}");
        }
    }
}
