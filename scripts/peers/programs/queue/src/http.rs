//! HTTP/1.1: the tensor is the body of a POST and of its answer.

use crate::{Failure, is_marked, mark, ready};
use axum::{
    Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    routing::post,
};

pub fn serve() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        ready(listener.local_addr()?)?;
        // The answer is the body that came: nothing is copied for it.
        let router = Router::new().route("/", post(async |body: Bytes| body)).layer(DefaultBodyLimit::disable());
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            let _ = stream.set_nodelay(true);
        });
        Ok(axum::serve(listener, router).await?)
    })
}

pub fn measure(address: &str, bytes: usize, trips: usize) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
    let url = format!("http://{address}/");
    // Bodies are made beforehand, so that none has to be copied for a trip.
    let bodies: Vec<Bytes> = marked(bytes);
    crate::measure(trips, |number| {
        let body = bodies[usize::from(number) % bodies.len()].clone();
        let answer = runtime.block_on(async { client.post(&url).body(body).send().await?.error_for_status()?.bytes().await });
        is_marked(&answer?, bytes, number % bodies.len() as u8)
    })
}

/// Two tensors with different marks.
pub fn marked(bytes: usize) -> Vec<Bytes> {
    let tensor = |value| {
        let mut tensor = vec![1; bytes];
        mark(&mut tensor, value);
        tensor.into()
    };
    vec![tensor(0), tensor(1)]
}
