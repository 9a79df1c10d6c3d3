//! The CPU device, through the trait that models use.

use std::sync::Arc;

use ihip_dsl::{Geometry, KvType, Pipeline, Plan};
use ihip_runtime::device::cpu::{CpuCache, CpuDevice, CpuTensor};
use ihip_runtime::device::{BlockLists, Device};
use ihip_runtime::session::Phase;
use ihip_runtime::{Session, Step};
use ihip_tests::support::golden::{self, Answer, Case, Engine, Kind};

struct Cpu(CpuDevice);

impl Cpu {
    /// A cache with the keys and values of all tokens before the first query.
    fn cache(&mut self, case: &Case) -> (Arc<Plan>, CpuCache) {
        let geometry = Geometry {
            query_heads: case.query_heads as u32,
            kv_heads: case.kv_heads as u32,
            head_dim: case.head_dim as u32,
            kv_type: KvType::F32,
            page: 16,
            query_scale: 1.0,
        };
        let pipeline = Pipeline::from_checked("Golden".into(), "".into(), case.pruning.clone(), [].as_slice().into());
        let plan = Plan::new(&pipeline, geometry, case.frequencies.clone(), 1).expect("no overrides");
        let plan = Arc::new(plan);
        let mut cache = self.0.cache(&plan, case.key_count()).expect("memory for a small case");
        self.0.record_masks(&mut cache, true);

        let rows = case.first_position;
        let before = Step { start: 0, rows, t_max: rows, phase: Phase::Prefill };
        self.0.begin(&mut cache, &before, &vec![0; rows]).expect("room for the keys");
        let queries = vec![0.0; rows * case.query_heads * case.head_dim];
        self.0.append(&mut cache, 0, &rows_of(case, 0..rows, &queries));
        (plan, cache)
    }

    /// Computes the queries `rows` of the case, the last of the step.
    fn step(&mut self, case: &Case, cache: &mut CpuCache, step: &Step) -> Answer {
        let width = case.query_heads * case.head_dim;
        let first = step.start - case.first_position;
        let qkv = rows_of(
            case,
            step.start..step.start + step.rows,
            &case.queries[first * width..(first + step.rows) * width],
        );
        let mut out = self.0.tensor(step.rows, width).expect("memory for a small case");
        self.0.begin(cache, step, &vec![0; step.rows]).expect("room for the queries");
        self.0.attention(cache, 0, &qkv, &mut out).expect("the CPU does not fail");
        let lists = self.0.block_lists(cache, 0).expect("the CPU does not fail").expect("a pruned layer");
        Answer {
            stage_inputs: Vec::new(),
            lists: counted(&lists),
            out: self.0.read(&out, step.rows).expect("the CPU does not fail"),
        }
    }
}

impl Engine for Cpu {
    fn call(&mut self, case: &Case) -> Answer {
        let (_, mut cache) = self.cache(case);
        let step = Step {
            start: case.first_position,
            rows: case.query_count(),
            t_max: case.key_count(),
            phase: Phase::Prefill,
        };
        self.step(case, &mut cache, &step)
    }

    fn steps(&mut self, case: &Case) -> Vec<Answer> {
        let (plan, mut cache) = self.cache(case);
        let mut session = Session::new(plan);
        session.advance(&Step { start: 0, rows: case.first_position, t_max: 0, phase: Phase::Prefill });
        (0..case.query_count())
            .map(|number| {
                // A golden grid ends with the keys that are there.
                let step = Step { t_max: session.length() + 1, ..session.decode_step() };
                if let (Kind::Steps(expected), Phase::Decode { restart }) = (&case.kind, &step.phase) {
                    assert_eq!(restart[0], expected[number], "{}: step {number}", case.name);
                }
                let answer = self.step(case, &mut cache, &step);
                session.advance(&step);
                answer
            })
            .collect()
    }
}

/// Rows of queries, keys and values side by side; `queries` are those of the rows alone.
fn rows_of(case: &Case, rows: std::ops::Range<usize>, queries: &[f32]) -> CpuTensor {
    let (width, kv_width) = (case.query_heads * case.head_dim, case.kv_heads * case.head_dim);
    let mut values = Vec::new();
    for (row, query) in rows.zip(queries.chunks_exact(width)) {
        values.extend_from_slice(query);
        values.extend_from_slice(&case.keys[row * kv_width..][..kv_width]);
        values.extend_from_slice(&case.values[row * kv_width..][..kv_width]);
    }
    CpuTensor::new(width + 2 * kv_width, values)
}

fn counted(lists: &BlockLists) -> Vec<Vec<i32>> {
    let rows = lists.counts.iter().enumerate();
    rows.map(|(row, count)| lists.blocks[row * lists.width..][..*count as usize].to_vec()).collect()
}

#[test]
fn every_case() {
    golden::check_all(&mut Cpu(CpuDevice::new(2).expect("two threads")));
}
