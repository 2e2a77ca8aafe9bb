//! Calls Fortanix' AESM client: `fortanix-aesm SOCKET COMMAND [HEX]…` prints one JSON object of hex strings.
//!
//! Commands: `connect` · `ids` · `init KEY-ID` · `quote KEY-ID REPORT NONCE [TARGET-INFO]` · `legacy`.
//! An error of the client is printed as `{"error": …}`; wrong arguments and panics end the process with a code.

use aesm_client::unix::AesmClientExt;
use aesm_client::{AesmClient, Result};
use std::env;
use std::path::Path;

type Fields = Vec<(&'static str, Vec<Vec<u8>>)>;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (socket, command, values) = match arguments.as_slice() {
        [socket, command, values @ ..] => (socket, command, values),
        _ => panic!("usage: fortanix-aesm SOCKET COMMAND [HEX]..."),
    };
    let client: AesmClient = AesmClientExt::with_path(Path::new(socket));
    let values: Vec<Vec<u8>> = values.iter().map(|value| from_hex(value)).collect();
    match run(&client, command, values) {
        Ok(fields) => println!("{{{}}}", fields.iter().map(member).collect::<Vec<_>>().join(", ")),
        Err(error) => println!("{{\"error\": {:?}}}", format!("{:?}", error)),
    }
}

fn run(client: &AesmClient, command: &str, values: Vec<Vec<u8>>) -> Result<Fields> {
    let mut values = values.into_iter();
    let mut next = || values.next().expect("a value is missing");
    match command {
        "connect" => client.try_connect().map(|_| vec![]),
        "ids" => Ok(vec![("att_key_ids", client.get_supported_att_key_ids()?)]),
        "init" => {
            let info = client.init_quote_ex(next())?;
            Ok(vec![
                ("target_info", vec![info.target_info().to_vec()]),
                ("pub_key_id", vec![info.pub_key_id().to_vec()]),
            ])
        }
        "quote" => {
            let (key_id, report, nonce) = (next(), next(), next());
            let result = client.get_quote_ex(key_id, report, values.next(), nonce)?;
            Ok(vec![
                ("quote", vec![result.quote().to_vec()]),
                ("qe_report", vec![result.qe_report().to_vec()]),
            ])
        }
        "legacy" => client.init_quote().map(|_| vec![]),
        _ => panic!("unknown command"),
    }
}

fn member((name, values): &(&str, Vec<Vec<u8>>)) -> String {
    let listed: Vec<String> = values.iter().map(|value| format!("\"{}\"", to_hex(value))).collect();
    format!("\"{}\": [{}]", name, listed.join(", "))
}

fn to_hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{:02x}", byte)).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}
