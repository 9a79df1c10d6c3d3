//! A batch: decoding steps of several requests in one graph, side by side.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use cudarc::driver::safe::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::memory::failed;
use super::timing::{AttentionTimer, TimedLayer, decoding_step};
use crate::{Device, Error, Result};

impl AttentionTimer {
    /// Seconds of a decoding step of every one of `layers`, each a request of its own: one graph whose branches do not wait
    /// for each other.
    ///
    /// # Errors
    /// A failed launch.
    pub fn decode_together(
        &mut self,
        layers: &mut [TimedLayer],
        restart: Option<usize>,
        samples: usize,
    ) -> Result<Vec<f64>> {
        let context = self.device.context.clone();
        let streams = layers.iter().map(|_| context.new_stream().map_err(failed("cuStreamCreate")));
        let streams = streams.collect::<Result<Vec<_>>>()?;
        for layer in layers.iter_mut() {
            // Once unrecorded: what loads at a first launch has no place in a graph.
            let step = decoding_step(layer, restart);
            self.device.begin(&mut layer.cache, &step, &[0])?;
            self.attend_once(layer)?;
        }
        let graph = self.record_together(layers, &streams)?;
        self.samples(samples, &mut |_| graph.launch().map_err(failed("cuGraphLaunch")))
    }

    /// The step that each layer was put in, on a stream of its own between a fork and a join.
    fn record_together(&mut self, layers: &mut [TimedLayer], streams: &[Arc<CudaStream>]) -> Result<CudaGraph> {
        let main = self.device.stream.clone();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        main.begin_capture(mode).map_err(failed("cuStreamBeginCapture"))?;
        let outcome = layers.iter_mut().zip(streams).try_for_each(|(layer, stream)| {
            stream.join(&main).map_err(failed("cuStreamWaitEvent"))?;
            self.device.stream = main.beside(stream.clone());
            let outcome = self.attend_once(layer);
            self.device.stream = main.clone();
            outcome
        });
        // A branch that is not joined fails the recording, which must be ended all the same.
        let joined = streams.iter().try_for_each(|stream| main.join(stream).map_err(failed("cuStreamWaitEvent")));
        let ended = main.end_capture(CUgraphInstantiate_flags(0));
        outcome.and(joined)?;
        let graph = ended.map_err(failed("cuStreamEndCapture"))?;
        graph.ok_or(Error::NothingRecorded { what: "decoding steps side by side" })
    }

    fn attend_once(&mut self, layer: &mut TimedLayer) -> Result<()> {
        let TimedLayer { cache, qkv, out, .. } = layer;
        self.device.attention(cache, 0, qkv, out)
    }
}
