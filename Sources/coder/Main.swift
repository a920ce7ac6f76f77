// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Server

@main
enum Main {
    static func main() async {
        let arguments = CommandLine.arguments
        guard arguments.count > 1, arguments[1] == "server" else { exit(2) }
        func value(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
        var options = ServerOptions(configDirectory: value("CODER_CONFIG_DIR") ?? "/tmp/coder")
        if let address = value("CODER_HTTP_ADDRESS") { options.httpAddress = address }
        if let url = value("CODER_ACCESS_URL") { options.accessURL = url }
        if let url = value("CODER_PG_CONNECTION_URL") { options.postgresURL = url }
        exit(await ServerProgram.run(options, say: { write($0, to: 1) }, complain: { write($0, to: 2) }))
    }

    private static func write(_ line: String, to descriptor: Int32) {
        let bytes = Array((line + "\n").utf8)
        _ = Glibc.write(descriptor, bytes, bytes.count)
    }
}
