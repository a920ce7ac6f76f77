// SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing

/// Arrows between modules run downwards only, and pure modules stay pure. The table is the architecture
/// (`docs/ARCHITECTURE.md`); the `import` lines are held against it.
@Suite struct DependencyTests {
    /// Modules of the project that a module may import.
    static let allowed: [String: Set<String>] = [
        "LinuxIO": ["CLinux"],
        "Mesh": ["CChaPoly", "CSodium", "CLinux", "LinuxIO"],
        "NetSim": ["Mesh"],
        "coder-netsim": ["LinuxIO", "Mesh", "NetSim"],
        "RPC": [],
        "SSH": ["CSodium"],
        "Resume": ["CSodium"],
        "Coordinator": ["Mesh", "RPC"],
        "DERPRelay": ["CLinux", "LinuxIO", "Mesh"],
        "TLS": [],
        "HTTPTransport": ["LinuxIO"],
        "Tailnet": ["HTTPTransport", "LinuxIO", "Mesh", "RPC", "Resume"],
        "Agent": ["CLinux", "HTTPTransport", "LinuxIO", "Mesh", "RPC", "Resume", "SSH", "Tailnet"],
        "Server": [
            "CLinux", "CPQ", "Coordinator", "DERPRelay", "HTTPTransport", "LinuxIO", "Mesh", "RPC", "TLS",
        ],
        "CLI": ["CLinux", "LinuxIO", "Mesh", "RPC", "SSH", "HTTPTransport", "TLS", "Tailnet", "Agent"],
        "coder": ["CLI", "Server"],
        "coder-slim": ["CLI"],
    ]

    /// Parts without I/O, clock or randomness of their own.
    static let pureFolders = [
        "Sources/Mesh/Addresses", "Sources/Mesh/Keys", "Sources/Mesh/WireGuard", "Sources/Mesh/Netstack",
        "Sources/Mesh/UAPI", "Sources/Mesh/Disco", "Sources/Mesh/STUN", "Sources/Mesh/DERP",
        "Sources/Mesh/Paths", "Sources/NetSim", "Sources/SSH", "Sources/Resume",
        "Sources/RPC", "Sources/Coordinator", "Sources/TLS",
    ]
    static let impure = ["LinuxIO", "CLinux", "Glibc", "Musl", "Dispatch", "Foundation", "NIO", "Logging"]

    static let ownModules = Set(allowed.keys).union(["CChaPoly", "CLinux", "CSodium", "CPQ"])

    static func imports(_ file: Project.File) -> [String] {
        file.lines.compactMap { line in
            let words = line.split(separator: " ")
            guard let index = words.firstIndex(of: "import"),
                words[..<index].allSatisfy({
                    $0.hasPrefix("@") || ["public", "internal", "package", "private"].contains($0)
                }),
                index + 1 < words.count
            else { return nil }
            let kinds = ["struct", "class", "enum", "func", "var", "let", "typealias", "protocol"]
            let next = kinds.contains(String(words[index + 1])) ? index + 2 : index + 1
            return words[next].split(separator: ".").first.map(String.init)
        }
    }

    @Test(arguments: Project.swiftFiles("Sources")) func arrowsRunDownwards(_ file: Project.File) {
        guard let allowed = Self.allowed[file.module] else {
            Issue.record("\(file.path): module is not in the table")
            return
        }
        for name in Self.imports(file) where Self.ownModules.contains(name) && name != file.module {
            #expect(allowed.contains(name), "\(file.path) imports \(name)")
        }
    }

    @Test(arguments: pureFolders) func pureModulesStayPure(_ folder: String) {
        for file in Project.swiftFiles(folder) where !file.isGenerated {
            for name in Self.imports(file) {
                #expect(!Self.impure.contains { name.hasPrefix($0) }, "\(file.path) imports \(name)")
            }
        }
    }

    @Test func meshAndSSHBuildWithoutNIO() {
        for folder in ["Mesh", "SSH", "DERPRelay", "LinuxIO", "TLS"].map({ "Sources/\($0)" }) {
            for file in Project.swiftFiles(folder) {
                #expect(!Self.imports(file).contains { $0.hasPrefix("NIO") }, "\(file.path) imports NIO")
            }
        }
    }
}
