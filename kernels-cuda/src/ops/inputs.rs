//! What a batch says, on its way to the kernels: tokens, places and wanted rows, in one copy.

use super::{Places, attention::Lists};
use crate::{Arena, Device, DeviceError, Span, Stream, UploadBuffer, driver::ALIGN};
use rustai_abi::Batch;

/// Values of a list start at multiples of this.
const STEP: usize = ALIGN / size_of::<u32>();

/// The inputs of one step, at addresses that stay: a recorded graph reads whatever was sent last.
///
/// Pages come last, so that one copy of the used part brings everything.
#[derive(Debug)]
pub struct BatchInputs {
    host: UploadBuffer<u32>,
    device: Span,
    tokens: Span,
    outputs: Span,
    places: Places,
    /// First values of the lists: positions, tables, order, outputs, pages; tokens start at 0.
    starts: [usize; 5],
}

impl BatchInputs {
    /// Room for batches of so many tokens and outputs whose sequences use so many pages in all, of caches with `cache_pages`
    /// pages.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no room, or from the driver.
    pub fn new(
        device: &Device,
        max_tokens: usize,
        max_outputs: usize,
        max_pages: usize,
        cache_pages: usize,
    ) -> Result<Self, DeviceError> {
        let after = |start: usize, len: usize| len.div_ceil(STEP).saturating_mul(STEP).saturating_add(start);
        let positions = after(0, max_tokens);
        let tables = after(positions, max_tokens);
        let order = after(tables, max_tokens);
        let outputs = after(order, max_tokens);
        let pages = after(outputs, max_outputs);
        let len = after(pages, max_pages);
        let span = Span::new(device, "a batch's inputs", len.saturating_mul(size_of::<u32>()))?;
        // Whatever runs before the first batch reads places that there are.
        span.upload(&vec![0u32; len])?;
        let list = |start: usize, len: usize| span.part(start * size_of::<u32>(), len * size_of::<u32>());
        let [positions_list, tables_list, order_list] =
            [list(positions, max_tokens)?, list(tables, max_tokens)?, list(order, max_tokens)?];
        let lists = [positions_list, tables_list, order_list, list(pages, max_pages)?];
        Ok(Self {
            host: UploadBuffer::new(device, "a batch's inputs", len)?,
            tokens: list(0, max_tokens)?,
            outputs: list(outputs, max_outputs)?,
            places: Places::at(lists, cache_pages),
            starts: [positions, tables, order, outputs, pages],
            device: span,
        })
    }

    /// Bytes of device memory that [`new`](Self::new) takes, but for rounding.
    pub fn room(max_tokens: usize, max_outputs: usize, max_pages: usize) -> usize {
        let list = Arena::room::<u32>;
        list(max_tokens).saturating_mul(4).saturating_add(list(max_outputs)).saturating_add(list(max_pages))
    }

    /// Puts a batch's inputs behind the stream's work.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the batch does not fit, has no page for a position, or names a page that caches do not
    /// have; [`DeviceError::Driver`]. Nothing has been sent then.
    pub fn send(&mut self, stream: &Stream, batch: &Batch<'_>) -> Result<(), DeviceError> {
        let [positions, tables, order, outputs, pages] = self.starts;
        let (tokens_fit, outputs_fit) =
            (batch.tokens.len() * 4 <= self.tokens.bytes(), batch.outputs.len() * 4 <= self.outputs.bytes());
        if !tokens_fit || !outputs_fit {
            return Err(DeviceError::Invalid(format!(
                "a batch of {} tokens and {} outputs, where {} and {} have room",
                batch.tokens.len(),
                batch.outputs.len(),
                self.tokens.bytes() / 4,
                self.outputs.bytes() / 4
            )));
        }
        let (front, page_list) = self.host.values()?.split_at_mut(pages);
        let (front, output_list) = front.split_at_mut(outputs);
        let (front, order_list) = front.split_at_mut(order);
        let (front, table_list) = front.split_at_mut(tables);
        let (token_list, position_list) = front.split_at_mut(positions);
        token_list[..batch.tokens.len()].copy_from_slice(batch.tokens);
        output_list[..batch.outputs.len()].copy_from_slice(batch.outputs);
        let lists = Lists { positions: position_list, tables: table_list, order: order_list, pages: page_list };
        let used = self.places.list(batch, lists)?;
        self.host.send(stream, &self.device, pages + used)
    }

    /// The tokens (`u32`).
    pub fn tokens(&self) -> &Span {
        &self.tokens
    }

    /// The wanted rows (`u32`).
    pub fn outputs(&self) -> &Span {
        &self.outputs
    }

    /// Positions and pages.
    pub fn places(&self) -> &Places {
        &self.places
    }
}
