//! Chunks scored as a whole: by their mean, by bounds of their keys, or by every key.
//!
//! All keys of such a chunk stand where the right half of one would.

use ihip_dsl::rope::{Branch, RopeTable};
use pulp::{Simd, WithSimd};

use super::panels::{Form, Products, Vectors};
use super::product::{Rows, dots, product};
use super::scan::HeadScan;

impl HeadScan<'_> {
    /// Products with the mean of the keys of every chunk.
    pub(super) fn means<const W: usize>(&self, visible: &[usize]) -> Products {
        let scan = self.scan;
        let summaries = scan.cached.summaries(scan.layer, scan.stage);
        let placing = self.placing(Branch::Right);
        let means = Vectors {
            depth: summaries.width(),
            range: 0..visible.len(),
            vector: |chunk: usize| summaries.of_chunk(self.kv_head(), visible[chunk]),
            rope: placing.rope(),
            place: |chunk: usize| placing.of(chunk, visible[chunk]),
            target: |chunk| chunk,
        };
        let panels =
            self.panels::<W>(self.distance(Branch::Right), Form { parts: false, mean: self.rows_become_one() });
        let mut products = self.products(1, visible.len(), &panels);
        panels.multiply(scan.arch, &means, &mut products);
        products
    }

    /// The largest products with the keys of every chunk.
    pub(super) fn exact<const W: usize>(&self, visible: &[usize]) -> Products {
        let (chunk, head_dim) = (self.scan.stage.chunk, self.scan.queries.head_dim());
        let placing = self.placing(Branch::Right);
        let position = |key: usize| visible[key / chunk] + key % chunk;
        let reader = self.keys();
        let keys = Vectors {
            depth: head_dim,
            range: 0..visible.len() * chunk,
            vector: |key: usize| reader.row(position(key)),
            rope: placing.rope(),
            place: |key: usize| placing.of(key / chunk, position(key)),
            target: |key: usize| key / chunk,
        };
        let panels =
            self.panels::<W>(self.distance(Branch::Right), Form { parts: false, mean: self.rows_become_one() });
        let mut products = self.products(1, visible.len(), &panels);
        panels.multiply(self.scan.arch, &keys, &mut products);
        products
    }

    /// Bounds of the products with the keys of every chunk (Quest, arXiv 2406.10774 §3.2): positive elements of a query
    /// times the greatest that a key has there, negative ones times the least, which is one product.
    pub(super) fn bounds<const W: usize>(&self, visible: &[usize]) -> Products {
        let scan = self.scan;
        let placing = self.placing(Branch::Right);
        if let Some(rope) = placing.rope() {
            return self.turned_bounds::<W>(visible, rope);
        }
        let summaries = scan.cached.summaries(scan.layer, scan.stage);
        let bounds = Vectors {
            depth: summaries.width(),
            range: 0..visible.len(),
            vector: |chunk: usize| summaries.of_chunk(self.kv_head(), visible[chunk]),
            rope: None,
            place: |chunk| chunk,
            target: |chunk| chunk,
        };
        let panels = self.panels::<W>(self.distance(Branch::Right), Form { parts: true, mean: self.rows_become_one() });
        let mut products = self.products(1, visible.len(), &panels);
        panels.multiply(scan.arch, &bounds, &mut products);
        products
    }

    /// The same where every chunk has a position of its own: bounds cannot be rotated, so that the queries are turned
    /// back instead, once for each chunk.
    fn turned_bounds<const W: usize>(&self, visible: &[usize], rope: &RopeTable) -> Products {
        let Self { scan, .. } = self;
        let summaries = scan.cached.summaries(scan.layer, scan.stage);
        let placing = self.placing(Branch::Right);
        let panels = self.panels::<W>(self.distance(Branch::Right), Form::default());
        let mut products = Products::default();
        products.clear(1, visible.len(), panels.columns());
        let mut turned = vec![0.0; summaries.width() * W];
        for (chunk, left) in visible.iter().enumerate() {
            let position = placing.of(chunk, *left);
            for (number, panel) in panels.head(0).enumerate() {
                scan.arch.dispatch(TurnBack::<W> { panel, angles: rope.at(position), parts: &mut turned });
                let bounds = Rows {
                    step: 1,
                    depth: summaries.width(),
                    range: 0..1,
                    row: |_| summaries.of_chunk(self.kv_head(), *left),
                };
                let scores = &mut products.rows[chunk * panels.columns() + number * W..][..W];
                match W {
                    1 => dots(scan.arch, bounds, &turned, |_, score| scores[0] = score),
                    _ => product::<W, _, _>(scan.arch, bounds, &turned, |_, products| scores.copy_from_slice(products)),
                }
            }
        }
        products.reduce(panels.rows(), scan.stage.scoring.query_reduction);
        products
    }
}

/// Turns a panel back by a position, and takes it apart into its positive elements and its negative ones.
struct TurnBack<'a, const W: usize> {
    /// `[head_dim][W]`.
    panel: &'a [f32],
    /// Cosines and sines of the position.
    angles: (&'a [f32], &'a [f32]),
    /// `[2 · head_dim][W]`.
    parts: &'a mut [f32],
}

impl<const W: usize> WithSimd for TurnBack<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { panel, angles: (cos, sin), parts } = self;
        let (low, high) = panel.split_at(panel.len() / 2);
        let (positive, negative) = parts.split_at_mut(panel.len());
        let (low_positive, high_positive) = positive.split_at_mut(panel.len() / 2);
        let (low_negative, high_negative) = negative.split_at_mut(panel.len() / 2);
        for (pair, (cos, sin)) in cos.iter().zip(sin).enumerate() {
            let columns = pair * W..(pair + 1) * W;
            let sources = low[columns.clone()].iter().zip(&high[columns.clone()]);
            let lows = low_positive[columns.clone()].iter_mut().zip(&mut low_negative[columns.clone()]);
            let highs = high_positive[columns.clone()].iter_mut().zip(&mut high_negative[columns.clone()]);
            for ((x, y), (lows, highs)) in sources.zip(lows.zip(highs)) {
                let (turned_x, turned_y) = (x * cos + y * sin, y * cos - x * sin);
                *lows.0 = turned_x.max(0.0);
                *lows.1 = turned_x.min(0.0);
                *highs.0 = turned_y.max(0.0);
                *highs.1 = turned_y.min(0.0);
            }
        }
    }
}
