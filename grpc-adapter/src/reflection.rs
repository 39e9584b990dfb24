//! gRPC's server reflection: which services there are, and the descriptions of their messages, from the build's own set.

use futures::{Stream, StreamExt};
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use tonic::{Code, Request, Response, Status, Streaming};

const SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Everything that was compiled, found by name.
struct Index {
    files: Vec<Vec<u8>>,
    by_name: BTreeMap<String, usize>,
    by_symbol: BTreeMap<String, usize>,
    services: Vec<String>,
}

fn index() -> &'static Index {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(|| {
        let set = FileDescriptorSet::decode(SET).expect("the build wrote a descriptor set");
        let mut index = Index { files: vec![], by_name: BTreeMap::new(), by_symbol: BTreeMap::new(), services: vec![] };
        for file in set.file {
            let n = index.files.len();
            let package = file.package().to_owned();
            index.by_name.insert(file.name().to_owned(), n);
            let mut add = |name: String| {
                index.by_symbol.insert(name, n);
            };
            file.message_type.iter().for_each(|m| message(&package, m, &mut add));
            file.enum_type.iter().for_each(|e| enumeration(&package, e, &mut add));
            for service in &file.service {
                let name = format!("{package}.{}", service.name());
                service.method.iter().for_each(|m| add(format!("{name}.{}", m.name())));
                add(name.clone());
                index.services.push(name);
            }
            index.files.push(file.encode_to_vec());
        }
        index
    })
}

fn message(scope: &str, m: &DescriptorProto, add: &mut impl FnMut(String)) {
    let name = format!("{scope}.{}", m.name());
    m.nested_type.iter().for_each(|inner| message(&name, inner, add));
    m.enum_type.iter().for_each(|inner| enumeration(&name, inner, add));
    m.field.iter().for_each(|f| add(format!("{name}.{}", f.name())));
    add(name);
}

fn enumeration(scope: &str, e: &EnumDescriptorProto, add: &mut impl FnMut(String)) {
    e.value.iter().for_each(|v| add(format!("{scope}.{}", v.name())));
    add(format!("{scope}.{}", e.name()));
}

/// Describes the services whose package is one of these, or begins with it and a dot.
#[derive(Clone)]
pub(crate) struct Reflection {
    packages: Arc<[&'static str]>,
}

impl Reflection {
    pub(crate) fn of(packages: &[&'static str]) -> Reflection {
        Reflection { packages: packages.into() }
    }

    fn shown(&self, name: &str) -> bool {
        self.packages.iter().any(|p| name.strip_prefix(p).is_some_and(|rest| rest.starts_with('.')))
    }

    fn services(&self) -> impl Iterator<Item = &'static String> {
        index().services.iter().filter(|s| self.shown(s))
    }

    fn file(n: Option<&usize>, what: &str) -> Result<Vec<u8>, Status> {
        match n.and_then(|n| index().files.get(*n)) {
            Some(file) => Ok(file.clone()),
            None => Err(Status::not_found(format!("{what} is not known"))),
        }
    }
}

/// The two versions differ in their name only.
macro_rules! version {
    ($name:ident) => {
        pub(crate) mod $name {
            use super::*;
            use crate::pb::grpc::reflection::$name as pb;
            use pb::server_reflection_request::MessageRequest;
            use pb::server_reflection_response::MessageResponse;

            pub(crate) type Server = pb::server_reflection_server::ServerReflectionServer<Reflection>;

            pub(crate) fn server(reflection: Reflection) -> Server {
                Server::new(reflection)
            }

            fn answer(
                reflection: &Reflection,
                request: &pb::ServerReflectionRequest,
            ) -> Result<MessageResponse, Status> {
                let file = |bytes: Vec<u8>| {
                    MessageResponse::FileDescriptorResponse(pb::FileDescriptorResponse {
                        file_descriptor_proto: vec![bytes.into()],
                    })
                };
                match &request.message_request {
                    Some(MessageRequest::ListServices(_)) => {
                        let service = reflection.services().map(|s| pb::ServiceResponse { name: s.clone() }).collect();
                        Ok(MessageResponse::ListServicesResponse(pb::ListServiceResponse { service }))
                    }
                    Some(MessageRequest::FileByFilename(name)) => {
                        Reflection::file(index().by_name.get(name), name).map(file)
                    }
                    Some(MessageRequest::FileContainingSymbol(name)) => {
                        Reflection::file(index().by_symbol.get(name.trim_start_matches('.')), name).map(file)
                    }
                    // proto3 has none.
                    Some(MessageRequest::FileContainingExtension(_)) => {
                        Err(Status::not_found("there are no extensions"))
                    }
                    Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                        Reflection::file(index().by_symbol.get(name), name)?;
                        Ok(MessageResponse::AllExtensionNumbersResponse(pb::ExtensionNumberResponse {
                            base_type_name: name.clone(),
                            extension_number: vec![],
                        }))
                    }
                    None => Err(Status::invalid_argument("nothing was asked")),
                }
            }

            #[tonic::async_trait]
            impl pb::server_reflection_server::ServerReflection for Reflection {
                type ServerReflectionInfoStream =
                    Pin<Box<dyn Stream<Item = Result<pb::ServerReflectionResponse, Status>> + Send>>;

                async fn server_reflection_info(
                    &self,
                    request: Request<Streaming<pb::ServerReflectionRequest>>,
                ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                    let reflection = self.clone();
                    let answers = request.into_inner().map(move |request| {
                        let request = request?;
                        let response = answer(&reflection, &request).unwrap_or_else(|e| {
                            MessageResponse::ErrorResponse(pb::ErrorResponse {
                                error_code: Code::from(e.code()) as i32,
                                error_message: e.message().to_owned(),
                            })
                        });
                        Ok(pb::ServerReflectionResponse {
                            valid_host: request.host.clone(),
                            original_request: Some(request),
                            message_response: Some(response),
                        })
                    });
                    Ok(Response::new(Box::pin(answers)))
                }
            }
        }
    };
}

version!(v1);
version!(v1alpha);
