//! iceoryx2: a tensor is a slice of bytes that is loaned in shared memory and published; two services, one for each way.

use crate::{Failure, is_marked, mark, ready};
use iceoryx2::{
    port::{listener::Listener, notifier::Notifier, publisher::Publisher, subscriber::Subscriber},
    prelude::*,
    sample::Sample,
    sample_mut::SampleMut,
};

type Tensors = Publisher<ipc::Service, [u8], ()>;

/// One side: what it sends by and what it receives by.
struct Side {
    out: Tensors,
    inbox: Subscriber<ipc::Service, [u8], ()>,
    /// For a side that sleeps.
    events: Option<(Notifier<ipc::Service>, Listener<ipc::Service>)>,
    bytes: usize,
    _node: Node<ipc::Service>,
}

impl Side {
    fn new(sleeps: bool, bytes: usize, to: &str, from: &str) -> Result<Self, Failure> {
        set_log_level(LogLevel::Error);
        let node = NodeBuilder::new().create::<ipc::Service>()?;
        let tensors = |name: &str| {
            let builder = node.service_builder(&name.try_into()?).publish_subscribe::<[u8]>();
            Ok::<_, Failure>(builder.max_publishers(1).max_subscribers(1).history_size(0).open_or_create()?)
        };
        let out = tensors(to)?.publisher_builder().initial_max_slice_len(bytes).create()?;
        let inbox = tensors(from)?.subscriber_builder().create()?;
        let events = |name: &str| {
            let builder = node.service_builder(&name.try_into()?).event();
            Ok::<_, Failure>(builder.open_or_create()?)
        };
        let events = match sleeps {
            true => {
                let (to, from) = (events(&format!("{to}/event"))?, events(&format!("{from}/event"))?);
                Some((to.notifier_builder().create()?, from.listener_builder().create()?))
            }
            false => None,
        };
        Ok(Self { out, inbox, events, bytes, _node: node })
    }

    /// A tensor whose memory is as it was.
    fn loan(&self) -> Result<SampleMut<ipc::Service, [u8], ()>, Failure> {
        let sample = self.out.loan_slice_uninit(self.bytes)?;
        // SAFETY: the memory is that of a shared memory file, all of whose bytes the kernel has set to zero or a process has
        // written; every value is a byte.
        Ok(unsafe { sample.assume_init() })
    }

    fn send(&self, tensor: SampleMut<ipc::Service, [u8], ()>) -> Result<(), Failure> {
        tensor.send()?;
        if let Some((notifier, _)) = &self.events {
            notifier.notify()?;
        }
        Ok(())
    }

    fn receive(&self) -> Result<Sample<ipc::Service, [u8], ()>, Failure> {
        loop {
            if let Some(sample) = self.inbox.receive()? {
                return Ok(sample);
            }
            match &self.events {
                Some((_, listener)) => drop(listener.blocking_wait(|_| ())?),
                None => std::hint::spin_loop(),
            }
        }
    }
}

fn names(name: &str) -> (String, String) {
    (format!("queue-peers/{name}/there"), format!("queue-peers/{name}/back"))
}

pub fn serve(sleeps: bool, bytes: usize, name: &str) -> Result<(), Failure> {
    let (there, back) = names(name);
    let side = Side::new(sleeps, bytes, &back, &there)?;
    ready(name)?;
    loop {
        let tensor = side.receive()?;
        let mut answer = side.loan()?;
        for at in [0, bytes - 1] {
            answer.payload_mut()[at] = tensor.payload()[at];
        }
        drop(tensor);
        side.send(answer)?;
    }
}

pub fn measure(sleeps: bool, bytes: usize, trips: usize) -> Result<(), Failure> {
    let (there, back) = names(&std::process::id().to_string());
    let side = Side::new(sleeps, bytes, &there, &back)?;
    crate::measure(trips, |number| {
        let mut tensor = side.loan()?;
        mark(tensor.payload_mut(), number);
        side.send(tensor)?;
        is_marked(side.receive()?.payload(), bytes, number)
    })
}
