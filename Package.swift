// swift-tools-version:6.2
// SPDX-License-Identifier: Apache-2.0

import PackageDescription

// PURE=1 leaves out everything that needs SwiftNIO or PostgreSQL, so that the protocol modules and their
// tests build in seconds: `PURE=1 swift test --filter MeshTests`.
let pureOnly = Context.environment["PURE"] == "1"

let base: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"), .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .enableUpcomingFeature("InferIsolatedConformances"), .treatAllWarnings(as: .error),
]
let pure =
    base + [
        .strictMemorySafety(), .enableExperimentalFeature("Lifetimes"),
        .treatWarning("StrictMemorySafety", as: .warning),
    ]

/// Modules off the data path: the small executable gains more from their size than anybody from their speed.
let small = base + [.unsafeFlags(["-Osize"], .when(configuration: .release))]

let crypto: Target.Dependency = .product(name: "Crypto", package: "swift-crypto")
let protobuf: Target.Dependency = .product(name: "SwiftProtobuf", package: "swift-protobuf")
let log: Target.Dependency = .product(name: "Logging", package: "swift-log")
// Not the umbrella product: it would bring ropes and trees into the small executable.
let collections: [Target.Dependency] = [
    .product(name: "DequeModule", package: "swift-collections"),
    .product(name: "HeapModule", package: "swift-collections"),
]
let nio: [Target.Dependency] = [
    .product(name: "NIOCore", package: "swift-nio"), .product(name: "NIOPosix", package: "swift-nio"),
    .product(name: "NIOHTTP1", package: "swift-nio"), .product(name: "NIOWebSocket", package: "swift-nio"),
    .product(name: "NIOSSL", package: "swift-nio-ssl"),
]

var dependencies: [Package.Dependency] = [
    .package(url: "https://github.com/apple/swift-crypto", exact: "4.5.2"),
    .package(url: "https://github.com/apple/swift-protobuf", exact: "1.39.0"),
    .package(url: "https://github.com/apple/swift-log", exact: "1.16.2"),
    .package(url: "https://github.com/apple/swift-collections", exact: "1.6.0"),
]

var targets: [Target] = [
    .systemLibrary(name: "CSodium", pkgConfig: "libsodium", providers: [.apt(["libsodium-dev"])]),
    .target(name: "CLinux"),
    .target(name: "CChaPoly"),
    .target(name: "LinuxIO", dependencies: ["CLinux"], exclude: ["README.md"], swiftSettings: base),
    .target(
        name: "Mesh", dependencies: ["CChaPoly", "CSodium", "LinuxIO", crypto] + collections,
        exclude: ["README.md"], swiftSettings: pure),
    .target(
        name: "NetSim", dependencies: ["Mesh"] + collections, exclude: ["README.md"], swiftSettings: pure),
    .executableTarget(
        name: "coder-netsim", dependencies: ["NetSim", "Mesh", "LinuxIO"], swiftSettings: base),
    // Not `pure`: the generated messages are not marked for strict memory safety.
    .target(
        name: "RPC", dependencies: [protobuf], exclude: ["README.md", "Protocols"], swiftSettings: small),
    .target(
        name: "SSH", dependencies: ["CSodium", crypto], exclude: ["README.md"],
        swiftSettings: pure),
    .target(
        name: "Resume", dependencies: ["CSodium"], exclude: ["README.md"], swiftSettings: pure),
    .target(name: "Coordinator", dependencies: ["RPC", "Mesh"], exclude: ["README.md"], swiftSettings: pure),
    .target(
        name: "DERPRelay", dependencies: ["LinuxIO", "Mesh"], exclude: ["README.md"], swiftSettings: base),

    .target(
        name: "TestSupport", dependencies: ["LinuxIO"], path: "Tests/TestSupport", swiftSettings: base),
    .testTarget(name: "LinuxIOTests", dependencies: ["LinuxIO"], swiftSettings: base),
    .testTarget(
        name: "MeshTests", dependencies: ["Mesh", "LinuxIO", "CSodium", "TestSupport"], swiftSettings: base),
    .testTarget(name: "NetSimTests", dependencies: ["NetSim", "Mesh"], swiftSettings: base),
    .testTarget(name: "RPCTests", dependencies: ["RPC", protobuf], swiftSettings: base),
    .testTarget(name: "SSHTests", dependencies: ["SSH", "LinuxIO"], swiftSettings: base),
    .testTarget(name: "ResumeTests", dependencies: ["Resume"], swiftSettings: base),
    .testTarget(name: "CoordinatorTests", dependencies: ["Coordinator", "RPC"], swiftSettings: base),
    .testTarget(name: "DERPRelayTests", dependencies: ["DERPRelay", "Mesh", "LinuxIO"], swiftSettings: base),
    .testTarget(name: "TidyTests", swiftSettings: base),
]

if !pureOnly {
    dependencies += [
        .package(url: "https://github.com/apple/swift-nio", exact: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", exact: "2.37.6"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", exact: "2.28.1"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", exact: "2.13.0"),
    ]
    targets += [
        .systemLibrary(name: "CPQ", pkgConfig: "libpq", providers: [.apt(["libpq-dev"])]),
        // BoringSSL's C interface is a module of the package that has NIOSSL for a product.
        .target(
            name: "TLS", dependencies: [.product(name: "NIOSSL", package: "swift-nio-ssl")],
            exclude: ["README.md"], swiftSettings: base),
        .target(
            name: "HTTPTransport", dependencies: nio + [log, crypto, "LinuxIO"], exclude: ["README.md"],
            swiftSettings: small),
        .target(
            name: "Tailnet", dependencies: ["Mesh", "Resume", "RPC", "HTTPTransport", "LinuxIO", log],
            exclude: ["README.md"], swiftSettings: small),
        .target(
            name: "Agent",
            dependencies: ["Tailnet", "Resume", "Mesh", "SSH", "RPC", "HTTPTransport", "LinuxIO", log],
            exclude: ["README.md"], swiftSettings: small),
        .target(
            name: "Server",
            dependencies: nio + [
                "RPC", "Coordinator", "DERPRelay", "HTTPTransport", "Mesh", "CPQ", "LinuxIO", "TLS", log,
                crypto, protobuf, .product(name: "CryptoExtras", package: "swift-crypto"),
                .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "HummingbirdCore", package: "hummingbird"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
            ], exclude: ["README.md"], swiftSettings: base),
        .target(
            name: "CLI",
            dependencies: [
                "Tailnet", "Resume", "Mesh", "SSH", "RPC", "HTTPTransport", "Agent", "LinuxIO", "TLS", log,
            ],
            exclude: ["README.md"], swiftSettings: small),
        .executableTarget(
            name: "coder", dependencies: ["CLI", "Server"], swiftSettings: base,
            // A file that needs nothing of the toolchain, but libraries that Debian has.
            linkerSettings: [
                .unsafeFlags(["-static-stdlib"]), .linkedLibrary("CoreFoundation"),
                .linkedLibrary("_FoundationICU"), .linkedLibrary("_FoundationCollections"),
                .linkedLibrary("_FoundationCShims"),
            ]),
        .executableTarget(
            name: "coder-slim", dependencies: ["CLI"], swiftSettings: small,
            // One file that runs in any Linux container, whatever its C library is. The index of unwinding tables is
            // for C++ exceptions, which nothing here throws.
            linkerSettings: [
                .unsafeFlags([
                    "-static-executable", "-Xlinker", "--icf=safe", "-Xlinker", "--no-eh-frame-hdr",
                ]),
                .linkedLibrary("_FoundationCollections"),
                .linkedLibrary("_FoundationCShims"),
            ]),
        .testTarget(
            name: "TailnetTests",
            dependencies: [
                "Tailnet", "Resume", "Mesh", "RPC", "HTTPTransport", "Coordinator", "DERPRelay", "LinuxIO",
                log,
            ],
            swiftSettings: base),
        .testTarget(
            name: "AgentTests",
            dependencies: ["Agent", "Mesh", "RPC", "Resume", "SSH", "LinuxIO", protobuf],
            swiftSettings: base),
        .testTarget(
            name: "ServerTests",
            dependencies: [
                "Server", "HTTPTransport", "RPC", "Mesh", "LinuxIO", "TLS", "TestSupport", protobuf,
            ],
            swiftSettings: base),
        .testTarget(name: "TLSTests", dependencies: ["TLS", "Mesh", "TestSupport"], swiftSettings: base),
        .testTarget(
            name: "HTTPTransportTests", dependencies: nio + ["HTTPTransport", "LinuxIO", crypto],
            swiftSettings: base),
        .testTarget(
            name: "CLITests", dependencies: ["CLI", "HTTPTransport", "Mesh", "LinuxIO"], exclude: ["Golden"],
            swiftSettings: base),
        .testTarget(name: "EndToEndTests", dependencies: ["TestSupport"], swiftSettings: base),
    ]
}

let package = Package(
    name: "coder",
    products: pureOnly
        ? []
        : [
            .executable(name: "coder", targets: ["coder"]),
            .executable(name: "coder-slim", targets: ["coder-slim"]),
        ],
    dependencies: dependencies,
    targets: targets,
    cLanguageStandard: .gnu17
)
