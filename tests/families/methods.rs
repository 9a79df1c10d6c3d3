//! Other people's methods against what their papers say, computed here in plain loops: by the reference, the CPU
//! device and the generated kernels.
//!
//! Each is one stage, so that the list is what the method picks: the best of the blocks that have left the window, one
//! block less than the attention has it, at the first query of the block.

use std::ops::Range;

use ihip_dsl::reference;
use ihip_dsl::{KvType, LayerPruning, parse_str};
use ihip_runtime::session::Phase;
use ihip_tests::support::attention::Attention;
use ihip_tests::support::layer as cpu;
use ihip_tests::support::tolerance;
use proptest::prelude::*;
use proptest::sample::select;

use super::{Data, Layer, check, difference};

/// A layer that does what `words` say, between the braces of a declaration.
fn declared((query_heads, kv_heads): (u32, u32), words: &str) -> Layer {
    let pipeline = parse_str(&format!("pub Method {{ {words} }}")).expect("a valid pipeline").remove(0);
    let pruning: LayerPruning = pipeline.base().prefill.pruned().expect("it prunes").clone();
    Layer { heads: (query_heads, kv_heads, 32), kv_type: KvType::F32, page: 16, trained: 8192, pruning }
}

/// What one implementation makes of a call.
struct Answer {
    name: &'static str,
    lists: Vec<Vec<i32>>,
    out: Vec<f32>,
}

/// A call by everything that computes it, in a grid with room for all that the queries may see.
fn answers(layer: &Layer, attention: &mut Attention, data: &Data) -> [Answer; 3] {
    let frequencies = layer.frequencies();
    let room = layer.pruning.stages.first().map_or(0, |first| first.chunk as usize);
    let problem = data.problem(layer, &frequencies, data.first + data.rows + room);
    let said = reference::prefill(&problem);
    let counted = said.lists.iter().map(|list| list.blocks[..list.count].iter().map(|&block| block as i32).collect());
    let lists = if layer.pruning.stages.is_empty() { Vec::new() } else { counted.collect() };
    let on_cpu = cpu::Layer::new(&cpu::plan(&problem), problem.t_max, 2).call(&problem, Phase::Prefill);
    let qkv = data.cache(layer, attention);
    let (out, masks) = attention.prefill(data.first, problem.t_max, &qkv);
    let cpu_lists = if layer.pruning.stages.is_empty() { Vec::new() } else { on_cpu.lists };
    [
        Answer { name: "reference", lists, out: said.out },
        Answer { name: "CPU device", lists: cpu_lists, out: on_cpu.out },
        Answer { name: "kernels", lists: masks.lists, out },
    ]
}

/// Queries and keys of a call as the papers have them.
struct Paper<'a> {
    layer: &'a Layer,
    data: &'a Data,
    frequencies: Vec<f64>,
}

impl<'a> Paper<'a> {
    fn new(layer: &'a Layer, data: &'a Data) -> Self {
        Self { layer, data, frequencies: layer.frequencies() }
    }

    fn rotated(&self, x: &[f32], position: usize) -> Vec<f64> {
        let half = self.frequencies.len();
        let mut rotated: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for (pair, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            rotated[pair] = f64::from(x[pair]) * cos - f64::from(x[half + pair]) * sin;
            rotated[half + pair] = f64::from(x[half + pair]) * cos + f64::from(x[pair]) * sin;
        }
        rotated
    }

    /// The query of a head, scaled, rotated at `position`.
    fn query(&self, row: usize, head: usize, position: usize) -> Vec<f64> {
        let head_dim = self.layer.heads.2 as usize;
        let query = &self.data.queries[row * self.layer.query_row() + head * head_dim..][..head_dim];
        let scale = 1.0 / (head_dim as f64).sqrt();
        self.rotated(query, position).iter().map(|q| q * scale).collect()
    }

    /// The key that a query head reads, rotated at `position`.
    fn key(&self, token: usize, head: usize, position: usize) -> Vec<f64> {
        let start = token * self.layer.key_row() + self.kv_head(head) * self.layer.heads.2 as usize;
        self.rotated(&self.data.keys[start..][..self.layer.heads.2 as usize], position)
    }

    fn value(&self, token: usize, head: usize) -> &[f32] {
        let start = token * self.layer.key_row() + self.kv_head(head) * self.layer.heads.2 as usize;
        &self.data.values[start..][..self.layer.heads.2 as usize]
    }

    fn kv_head(&self, head: usize) -> usize {
        head * self.layer.heads.1 as usize / self.layer.heads.0 as usize
    }

    /// The keys of a block, at their true positions.
    fn block(&self, left: usize, head: usize) -> Vec<Vec<f64>> {
        let chunk = self.layer.pruning.stages[0].chunk as usize;
        (left..left + chunk).map(|token| self.key(token, head, token)).collect()
    }

    /// The rows of every query block.
    fn query_blocks(&self) -> Vec<Range<usize>> {
        let (block, rows) = (self.layer.pruning.query_block as usize, self.data.rows);
        (0..rows).step_by(block).map(|start| start..(start + block).min(rows)).collect()
    }

    /// The best of the blocks that the query block may choose from by `score`, ascending; `None` in a near tie.
    fn best(&self, rows: &Range<usize>, score: impl Fn(usize) -> f64) -> Option<Vec<i32>> {
        let LayerPruning { sink, window, keep, ref stages, .. } = self.layer.pruning;
        let chunk = stages[0].chunk;
        let first_query = (self.data.first + rows.start) as u32;
        let lefts = (sink..).step_by(chunk as usize).take_while(|left| left + window - chunk <= first_query);
        let mut scored: Vec<(f64, i32)> = lefts.map(|left| (score(left as usize), left as i32)).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let keep = (keep / chunk) as usize;
        assert!(scored.len() > keep, "{} blocks are no choice", scored.len());
        // Two scores closer than this are no test of which is larger.
        let clear = scored[keep - 1].0 - scored[keep].0 > f64::from(tolerance::ELEMENT);
        let mut kept: Vec<i32> = scored[..keep].iter().map(|(_, left)| *left).collect();
        kept.sort_unstable();
        clear.then_some(kept)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// First position, rows and seed of a call that has blocks to choose from.
fn far_call() -> impl Strategy<Value = (usize, usize, u64)> {
    (250..450_usize, select(vec![1_usize, 1, 33, 100]), any::<u64>())
}

/// Compares the lists of every query block with those that `list` makes of its rows and a ranking's heads.
fn chooses(layer: &Layer, list: impl Fn(&Paper<'_>, Range<usize>, Range<usize>) -> Option<Vec<i32>>) {
    check(std::slice::from_ref(layer), 5, &far_call(), |layer, attention, (first, rows, seed)| {
        let data = Data::new(layer, first, rows, seed);
        let paper = Paper::new(layer, &data);
        let rankings = layer.geometry().rankings(layer.pruning.ranking) as usize;
        let shared = layer.heads.0 as usize / rankings;
        let entries = paper.query_blocks().into_iter().flat_map(|rows| (0..rankings).map(move |r| (rows.clone(), r)));
        let expected: Vec<Option<Vec<i32>>> =
            entries.map(|(rows, ranking)| list(&paper, rows, ranking * shared..(ranking + 1) * shared)).collect();
        if expected.iter().any(Option::is_none) {
            return Err(TestCaseError::reject("rounding decides"));
        }
        let expected: Vec<Vec<i32>> = expected.into_iter().flatten().collect();
        for answer in answers(layer, attention, &data) {
            prop_assert_eq!(&answer.lists, &expected, "{}", answer.name);
        }
        Ok(())
    });
}

/// Quest (arXiv 2406.10774, algorithm 1): a page's bound is Σ max(q·least, q·greatest) over the elements, keys as they
/// are cached, rotated; each head takes the pages with the largest. A block of queries takes the largest of any.
#[test]
fn quests_pages_are_those_of_its_bound() {
    let quest = "query_block 64; sink 0; window 31; ranking each;
        stage { chunk 16, representative min_max } attend { keep 80 } rope { scan none, attend none }";
    chooses(&declared((4, 2), quest), |paper, rows, heads| {
        let head = heads.start;
        let queries: Vec<_> = rows.clone().map(|row| paper.query(row, head, paper.data.first + row)).collect();
        paper.best(&rows, |left| {
            let keys = paper.block(left, head);
            let bound = |query: &Vec<f64>| -> f64 {
                let of_element = |element: usize| {
                    let mut least = f64::INFINITY;
                    let mut greatest = f64::NEG_INFINITY;
                    for key in &keys {
                        least = least.min(key[element]);
                        greatest = greatest.max(key[element]);
                    }
                    (query[element] * least).max(query[element] * greatest)
                };
                (0..query.len()).map(of_element).sum()
            };
            queries.iter().map(bound).fold(f64::NEG_INFINITY, f64::max)
        })
    });
}

/// MoBA (arXiv 2502.13189, equation 6): a block's affinity is the product with the mean of its keys; each head takes
/// the blocks with the largest.
#[test]
fn mobas_blocks_are_those_of_the_mean_key() {
    let moba = "query_block 64; sink 0; window 64; ranking each;
        stage { chunk 24, representative mean } attend { keep 72 } rope { scan none, attend none }";
    chooses(&declared((4, 2), moba), |paper, rows, heads| {
        let head = heads.start;
        let queries: Vec<_> = rows.clone().map(|row| paper.query(row, head, paper.data.first + row)).collect();
        paper.best(&rows, |left| {
            let keys = paper.block(left, head);
            let mean = |element: usize| keys.iter().map(|key| key[element]).sum::<f64>() / keys.len() as f64;
            let mean: Vec<f64> = (0..keys[0].len()).map(mean).collect();
            queries.iter().map(|query| dot(query, &mean)).fold(f64::NEG_INFINITY, f64::max)
        })
    });
}

/// InfLLM-like (arXiv 2402.04617): keys without positions, all queries of a block take part by their mean, and queries
/// stand at one distance from all blocks. The head that wants a block most decides, as the language has it.
#[test]
fn blocks_by_means_of_keys_and_queries_are_those_of_their_products() {
    let infllm = "query_block 32; sink 16; window 48;
        stage { chunk 16, representative mean, query_reduction mean } attend { keep 64 }
        rope { scan infllm, attend infllm }";
    chooses(&declared((6, 2), infllm), |paper, rows, heads| {
        let distance = (paper.layer.pruning.window - 16) as usize;
        paper.best(&rows, |left| {
            let of_head = |head: usize| {
                let products = rows.clone().flat_map(|row| {
                    let query = paper.query(row, head, distance);
                    (left..left + 16).map(move |token| dot(&query, &paper.key(token, head, 0)))
                });
                products.sum::<f64>() / (rows.len() * 16) as f64
            };
            heads.clone().map(of_head).fold(f64::NEG_INFINITY, f64::max)
        })
    });
}

/// A block's exact score is its largest product with any query of any head, at the positions of the scan.
#[test]
fn exact_maxima_are_those_of_brute_force() {
    let rotated = "query_block 32; sink 8; window 40; ranking kv_group;
        stage { chunk 8, representative exact } attend { keep 64 } rope { scan none, attend none }";
    chooses(&declared((4, 2), rotated), |paper, rows, heads| {
        paper.best(&rows, |left| {
            let mut largest = f64::NEG_INFINITY;
            for head in heads.clone() {
                for key in paper.block(left, head) {
                    for row in rows.clone() {
                        largest = largest.max(dot(&paper.query(row, head, paper.data.first + row), &key));
                    }
                }
            }
            largest
        })
    });
    let relative = "query_block 32; sink 8; window 40;
        stage { chunk 8, representative exact } attend { keep 64 } rope { scan relative, attend streaming }";
    chooses(&declared((4, 2), relative), |paper, rows, heads| {
        // The query one past the scan's window, every key at 1.
        let (query, key) = (paper.layer.pruning.window as usize - 8 + 1, 1);
        paper.best(&rows, |left| {
            let mut largest = f64::NEG_INFINITY;
            for head in heads.clone() {
                for token in left..left + 8 {
                    for row in rows.clone() {
                        largest = largest.max(dot(&paper.query(row, head, query), &paper.key(token, head, key)));
                    }
                }
            }
            largest
        })
    });
}

/// StreamingLLM (arXiv 2309.17453, §3.2): sinks and the most recent tokens, at their positions in the cache.
#[test]
fn streaming_llm_is_sink_and_window() {
    let layer = declared((4, 2), "query_block 64; sink 4; window 60; rope { attend streaming }");
    check(&[layer], 6, &(0..450_usize, any::<u64>()), |layer, attention, (position, seed)| {
        let data = Data::new(layer, position, 1, seed);
        let paper = Paper::new(layer, &data);
        let cached: Vec<usize> = (0..=position).filter(|token| *token < 4 || position - token < 60).collect();
        let mut expected = Vec::new();
        for head in 0..4 {
            let query = paper.query(0, head, cached.len() - 1);
            let keys = cached.iter().enumerate();
            let weights: Vec<f64> =
                keys.map(|(index, &token)| dot(&query, &paper.key(token, head, index)).exp()).collect();
            let total: f64 = weights.iter().sum();
            for element in 0..32 {
                let values = cached.iter().map(|&token| f64::from(paper.value(token, head)[element]));
                expected.push((values.zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / total) as f32);
            }
        }
        for answer in answers(layer, attention, &data) {
            prop_assert!(answer.lists.is_empty(), "{}", answer.name);
            let difference = difference(&expected, &answer.out);
            prop_assert!(difference < tolerance::SUM, "{}: outputs differ by {}", answer.name, difference);
        }
        Ok(())
    });
}

/// The layer and its data with the query heads `heads` and the key-value heads that they read alone.
fn heads_alone(layer: &Layer, data: &Data, heads: Range<usize>) -> (Layer, Data) {
    let (query_heads, kv_heads, head_dim) = layer.heads;
    let group = (query_heads / kv_heads) as usize;
    let kv = heads.start / group..heads.end.div_ceil(group);
    let take = |values: &[f32], row: usize, heads: &Range<usize>| -> Vec<f32> {
        let elements = heads.start * head_dim as usize..heads.end * head_dim as usize;
        values.chunks(row).flat_map(|row| row[elements.clone()].to_vec()).collect()
    };
    let alone = Layer { heads: (heads.len() as u32, kv.len() as u32, head_dim), ..layer.clone() };
    let data = Data {
        queries: take(&data.queries, layer.query_row(), &heads),
        keys: take(&data.keys, layer.key_row(), &kv),
        values: take(&data.values, layer.key_row(), &kv),
        ..data.clone()
    };
    (alone, data)
}

/// Heads that share neither ranking nor descent with others choose what they would choose without them.
#[test]
fn a_ranking_of_its_own_is_that_of_its_heads_alone() {
    let stages = |scoring: &str| {
        format!(
            "query_block 32; sink 8; window 50; stage {{ chunk 16, query_stride 4, {scoring} }}
             stage {{ keep 96, chunk 8, query_stride 2, {scoring} }} attend {{ keep 48 }}
             rope {{ scan relative, attend streaming }}"
        )
    };
    let cases = [
        ("ranking each;", 1, "descent each"),
        ("ranking each;", 1, "representative min_max, scores soft"),
        ("ranking kv_group;", 2, "descent kv_group"),
        ("ranking kv_group;", 2, "descent kv_group, chunk_score last, query_reduction mean, scores soft"),
    ];
    for (ranking, shared, scoring) in cases {
        let layer = declared((4, 2), &format!("{ranking} {}", stages(scoring)));
        let of_heads = declared((shared, 1), &stages(scoring));
        check(std::slice::from_ref(&layer), 2, &far_call(), |layer, attention, (first, rows, seed)| {
            let data = Data::new(layer, first, rows, seed);
            let together = answers(layer, attention, &data);
            let rankings = 4 / shared as usize;
            for ranking in 0..rankings {
                let heads = ranking * shared as usize..(ranking + 1) * shared as usize;
                let (mut alone, data) = heads_alone(layer, &data, heads);
                alone.pruning = of_heads.pruning.clone();
                let mut attention = alone.attention(&alone.plan());
                for (together, alone) in together.iter().zip(answers(&alone, &mut attention, &data)) {
                    let own: Vec<_> = together.lists.iter().skip(ranking).step_by(rankings).collect();
                    let alone_lists: Vec<_> = alone.lists.iter().collect();
                    prop_assert_eq!(own, alone_lists, "{}, {}, ranking {}", together.name, scoring, ranking);
                }
            }
            Ok(())
        });
    }
}

/// Where all heads of a group ask for the same, it makes no difference that they descend together.
#[test]
fn heads_that_agree_descend_together_as_they_would_alone() {
    let words = |descent: &str| {
        format!(
            "query_block 32; sink 32; window 70; stage {{ chunk 32, query_stride 4, descent {descent} }}
             attend {{ keep 96 }} rope {{ scan relative, attend streaming }}"
        )
    };
    let [each, together] = ["each", "kv_group"].map(|descent| declared((6, 2), &words(descent)));
    let mut alone = each.attention(&each.plan());
    let layers = [together];
    let alone = std::cell::RefCell::new(&mut alone);
    check(&layers, 3, &far_call(), |layer, attention, (first, rows, seed)| {
        let mut data = Data::new(layer, first, rows, seed);
        for row in data.queries.chunks_mut(layer.query_row()) {
            for group in row.chunks_mut(3 * 32) {
                let (first, others) = group.split_at_mut(32);
                others.chunks_mut(32).for_each(|other| other.copy_from_slice(first));
            }
        }
        let each = answers(&each, *alone.borrow_mut(), &data);
        for (each, together) in each.iter().zip(answers(layer, attention, &data)) {
            prop_assert_eq!(&each.lists, &together.lists, "{}", each.name);
        }
        Ok(())
    });
}
