//! Where values in memory lie: here, or with whoever lends them.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Values that are owned, or lent by another owner and read in place.
#[derive(Clone)]
pub enum Store<T> {
    /// Owned.
    Own(Vec<T>),
    /// Lent, such as an array of Python: read in place, and copied only to be changed.
    Lent(Arc<dyn AsRef<[T]> + Send + Sync>),
}

impl<T: Clone> Store<T> {
    /// The values to change, copied first where they are lent.
    pub fn own(&mut self) -> &mut Vec<T> {
        if let Self::Lent(lent) = self {
            *self = Self::Own((**lent).as_ref().to_vec());
        }
        match self {
            Self::Own(values) => values,
            Self::Lent(_) => unreachable!("lent values were copied above"),
        }
    }
}

impl<T> Deref for Store<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Own(values) => values,
            Self::Lent(lent) => (**lent).as_ref(),
        }
    }
}

impl<T> From<Vec<T>> for Store<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Own(values)
    }
}

impl<T> FromIterator<T> for Store<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self::Own(values.into_iter().collect())
    }
}

impl<T: PartialEq> PartialEq for Store<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: fmt::Debug> fmt::Debug for Store<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_values_are_read_in_place_and_copied_to_be_changed() {
        let lent: Arc<Vec<f32>> = Arc::new(vec![1.0, 2.0]);
        let mut store = Store::Lent(lent.clone());
        assert_eq!(store.as_ptr(), lent.as_ptr());
        store.own()[0] = 3.0;
        assert_eq!((&*store, &**lent), (&[3.0, 2.0][..], &[1.0, 2.0][..]));
        assert_eq!(store, vec![3.0, 2.0].into());
    }
}
