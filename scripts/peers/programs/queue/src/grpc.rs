//! gRPC: a unary call whose message has one field of bytes. What a generator would write is written here by hand, so that
//! no protocol compiler is needed.

use crate::{Failure, http::marked, is_marked, ready};
use std::{
    convert::Infallible,
    future::{Ready, ready as at_once},
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http, http::uri::PathAndQuery},
    server::{NamedService, UnaryService},
    transport::{Endpoint, Server},
};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct Tensor {
    #[prost(bytes = "bytes", tag = "1")]
    data: prost::bytes::Bytes,
}

const PATH: &str = "/rustai.Echo/Echo";
/// Room for the tensor and what is around it.
const AROUND: usize = 1 << 16;

#[derive(Clone)]
struct Echo {
    largest: usize,
}

impl NamedService for Echo {
    const NAME: &'static str = "rustai.Echo";
}

struct Method;

impl UnaryService<Tensor> for Method {
    type Response = Tensor;
    type Future = Ready<Result<Response<Tensor>, Status>>;

    fn call(&mut self, request: Request<Tensor>) -> Self::Future {
        at_once(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let largest = self.largest;
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Tensor, Tensor>::default())
                .max_decoding_message_size(largest)
                .max_encoding_message_size(largest);
            Ok(grpc.unary(Method, request).await)
        })
    }
}

fn window(bytes: usize) -> Option<u32> {
    u32::try_from(bytes + AROUND).ok()
}

pub fn serve(bytes: usize) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        ready(listener.local_addr()?)?;
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder()
            .initial_stream_window_size(window(bytes))
            .initial_connection_window_size(window(bytes))
            .add_service(Echo { largest: bytes + AROUND })
            .serve_with_incoming(incoming);
        Ok(server.await?)
    })
}

pub fn measure(address: &str, bytes: usize, trips: usize) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(window(bytes))
        .initial_connection_window_size(window(bytes));
    let channel = runtime.block_on(endpoint.connect())?;
    let largest = bytes + AROUND;
    let mut grpc =
        tonic::client::Grpc::new(channel).max_decoding_message_size(largest).max_encoding_message_size(largest);
    let tensors = marked(bytes);
    crate::measure(trips, |number| {
        let data = tensors[usize::from(number) % tensors.len()].clone();
        let answer: Tensor = runtime.block_on(async {
            grpc.ready().await?;
            let codec = ProstCodec::<Tensor, Tensor>::default();
            let answer = grpc.unary(Request::new(Tensor { data }), PathAndQuery::from_static(PATH), codec).await?;
            Ok::<_, Failure>(answer.into_inner())
        })?;
        is_marked(&answer.data, bytes, number % tensors.len() as u8)
    })
}
