//! Which axes of a dataset are rows and columns.

/// Rows and columns among the axes of a dataset; the other axes are fixed at one index.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    /// The index at which each axis is fixed; empty if all are 0. That of rows and columns is not looked at.
    fixed: Box<[u64]>,
    /// The axis of rows; `None` in a dataset that is one row.
    pub rows: Option<usize>,
    /// The axis of columns.
    pub columns: usize,
}

impl View {
    /// The view of a dataset of `shape`: axes of length 1 are dropped while more than two are left, the first axis that
    /// remains are rows. `picks` fixes axes at an index; `transposed` makes the last axis that remains the rows.
    /// `None` where more than two axes remain, or none.
    pub fn new(shape: &[u64], picks: &[(usize, u64)], transposed: bool) -> Option<Self> {
        match *shape {
            [_] if picks.is_empty() => return Some(Self { fixed: Box::default(), rows: None, columns: 0 }),
            [_, _] if picks.is_empty() && !transposed => {
                return Some(Self { fixed: Box::default(), rows: Some(0), columns: 1 });
            }
            _ => {}
        }
        let mut fixed = vec![0; shape.len()];
        for &(axis, index) in picks {
            *fixed.get_mut(axis)? = index;
        }
        let mut left: Vec<usize> =
            (0..shape.len()).filter(|axis| picks.iter().all(|(picked, _)| picked != axis)).collect();
        while left.len() > 2 {
            let one = left.iter().position(|&axis| shape[axis] == 1)?;
            left.remove(one);
        }
        let fixed = fixed.into_boxed_slice();
        match left[..] {
            [columns] => Some(Self { fixed, rows: None, columns }),
            [rows, columns] if transposed => Some(Self { fixed, rows: Some(columns), columns: rows }),
            [rows, columns] => Some(Self { fixed, rows: Some(rows), columns }),
            _ => None,
        }
    }

    /// The index at which an axis is fixed.
    pub fn at(&self, axis: usize) -> u64 {
        self.fixed.get(axis).copied().unwrap_or(0)
    }

    /// Number of rows of a dataset of `shape`.
    pub fn n_rows(&self, shape: &[u64]) -> u64 {
        self.rows.map_or(1, |axis| shape[axis])
    }

    /// Width of a row.
    pub fn width(&self, shape: &[u64]) -> u64 {
        shape[self.columns]
    }

    /// Where the values of the first row begin, counted in values, if all rows lie one after another.
    pub fn start(&self, shape: &[u64]) -> Option<u64> {
        if self.fixed.is_empty() {
            return Some(0);
        }
        let strides = Self::strides(shape)?;
        let dense =
            strides[self.columns] == 1 && self.rows.is_none_or(|rows| strides[rows] == shape[self.columns]);
        dense.then(|| self.offset(&strides))
    }

    /// The steps of each axis of a dataset of `shape`, counted in values; `None` where those overflow.
    pub fn strides(shape: &[u64]) -> Option<Vec<u64>> {
        let mut stride = 1u64;
        let mut strides = vec![0; shape.len()];
        for axis in (0..shape.len()).rev() {
            strides[axis] = stride;
            stride = stride.checked_mul(shape[axis])?;
        }
        Some(strides)
    }

    /// Where the axes that are fixed begin, counted in values.
    pub fn offset(&self, strides: &[u64]) -> u64 {
        let free = |axis: &usize| *axis != self.columns && Some(*axis) != self.rows;
        // Each index is within its axis, so that the sum is less than the product of all axes.
        (0..strides.len()).filter(free).map(|axis| strides[axis] * self.at(axis)).sum()
    }

    /// Whether a row's values are those of one column of the file.
    pub fn is_transposed(&self) -> bool {
        self.rows.is_some_and(|rows| rows > self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::View;

    #[test]
    fn axes_of_length_one_are_dropped() {
        for (shape, n, width) in [
            (&[5][..], 1, 5),
            (&[3, 4], 3, 4),
            (&[1, 4], 1, 4),
            (&[3, 1, 4], 3, 4),
            (&[1, 3, 4], 3, 4),
            (&[1, 1, 4], 1, 4),
            (&[3, 4, 1], 3, 4),
            (&[3, 1], 3, 1),
        ] {
            let view = View::new(shape, &[], false).expect("a view");
            assert_eq!((view.n_rows(shape), view.width(shape)), (n, width), "{shape:?}");
            assert_eq!(view.start(shape), Some(0), "{shape:?}");
        }
        assert_eq!(View::new(&[2, 3, 4], &[], false), None);
        assert_eq!(View::new(&[], &[], false), None);
    }

    #[test]
    fn an_axis_can_be_fixed_at_an_index() {
        let view = View::new(&[2, 3, 4], &[(0, 1)], false).expect("a view");
        assert_eq!((view.n_rows(&[2, 3, 4]), view.start(&[2, 3, 4])), (3, Some(12)));
        let view = View::new(&[3, 2, 4], &[(1, 1)], false).expect("a view");
        assert_eq!((view.n_rows(&[3, 2, 4]), view.start(&[3, 2, 4])), (3, None));
        assert_eq!(View::new(&[3, 4], &[(2, 0)], false), None);
    }

    #[test]
    fn a_transposed_view_swaps_the_axes() {
        let view = View::new(&[4, 3], &[], true).expect("a view");
        assert_eq!((view.n_rows(&[4, 3]), view.width(&[4, 3]), view.start(&[4, 3])), (3, 4, None));
        assert!(view.is_transposed());
    }
}
