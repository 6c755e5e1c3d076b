//! The measures as windows.
//!
//! Owns: the frame that grows, which is a walk that goes on, and the frame that slides, which is
//! walked again for each row. DataFusion does not count what a window keeps, so a growing frame
//! keeps nothing but its sums, and a sliding one the rows that it covers.
//! Invariant: rows come in the order of their time; one that does not is refused, because the rows
//! to sort it among are gone.

use std::collections::VecDeque;

use datafusion::{
    arrow::{array::ArrayRef, datatypes::DataType},
    common::{exec_err, internal_err},
    error::Result,
    logical_expr::{Accumulator, function::AccumulatorArgs},
    scalar::ScalarValue,
};

use super::{
    super::stop::Stop,
    argument,
    measured::each,
    number::Number,
    walk::{Measure, Walk},
};

/// How a measure is called as a window.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Windowed {
    measure: Measure,
    stop: Stop,
}

impl Windowed {
    pub(super) fn new(measure: Measure, stop: Stop) -> Self {
        Self { measure, stop }
    }

    /// The accumulator of a frame.
    pub(super) fn accumulator(
        &self,
        args: &AccumulatorArgs<'_>,
        slides: bool,
    ) -> Result<Box<dyn Accumulator>> {
        argument::plain(self.measure.name(), args)?;
        Ok(match args.expr_fields.first().map(|f| f.data_type()) {
            Some(DataType::Float64) => Box::new(Running::<f64>::new(self, slides)),
            Some(DataType::Int64) => Box::new(Running::<i64>::new(self, slides)),
            Some(DataType::UInt64) => Box::new(Running::<u64>::new(self, slides)),
            other => return internal_err!("a window of {other:?}"),
        })
    }
}

/// See the module head.
#[derive(Debug)]
pub(super) struct Running<N> {
    window: Windowed,
    latest: i64,
    walk: Walk<N>,
    /// The rows of a frame that slides.
    frame: Option<VecDeque<(i64, N)>>,
}

impl<N: Number> Running<N> {
    pub(super) fn new(window: &Windowed, slides: bool) -> Self {
        Self {
            window: window.clone(),
            latest: i64::MIN,
            walk: Walk::default(),
            frame: slides.then(VecDeque::new),
        }
    }
}

impl<N: Number> Accumulator for Running<N> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let mut in_order = true;
        each::<N>(values, None, |_, time, value| {
            in_order &= time >= self.latest;
            self.latest = time;
            match &mut self.frame {
                Some(frame) => frame.push_back((time, value)),
                None => self.walk.add(time, value),
            }
        })?;
        if !in_order {
            return exec_err!(
                "`{}` as a window takes rows in the order of their time: OVER (... ORDER BY time)",
                self.window.measure.name()
            );
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(frame) = &mut self.frame else { return internal_err!("the frame grows") };
        let mut left = 0;
        each::<N>(values, None, |_, _, _| left += 1)?;
        frame.drain(..left.min(frame.len()));
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        self.frame.is_some()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        // A wide frame is walked for every row, which can take long.
        self.window.stop.check()?;
        let mut walk = self.walk;
        for (time, value) in self.frame.iter().flatten() {
            walk.add(*time, *value);
        }
        Ok(ScalarValue::Float64(walk.result(self.window.measure)))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        internal_err!("a window has no partial state")
    }

    fn merge_batch(&mut self, _states: &[ArrayRef]) -> Result<()> {
        internal_err!("a window has no partial state")
    }

    fn size(&self) -> usize {
        let frame = self.frame.as_ref().map_or(0, VecDeque::capacity);
        size_of::<Self>() + frame * size_of::<(i64, N)>()
    }
}
