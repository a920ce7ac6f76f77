// SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing

/// The project's own files, found from this file's place.
enum Project {
    static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    /// A text file of the project.
    struct File: Sendable, CustomTestStringConvertible {
        let path: String
        let lines: [Substring]
        var testDescription: String { path }
        var isGenerated: Bool { path.hasSuffix(".pb.swift") }
        /// The folder below `Sources`.
        var module: String { String(path.split(separator: "/").dropFirst().first ?? "") }
    }

    /// Swift files below a folder, sorted, with paths relative to the root.
    static func swiftFiles(_ folder: String) -> [File] {
        files(folder).filter { $0.path.hasSuffix(".swift") }
    }

    /// All files below a folder that are text.
    static func files(_ folder: String) -> [File] {
        let base = root.appending(path: folder)
        let names = FileManager.default.enumerator(atPath: base.path)?.compactMap { $0 as? String } ?? []
        return names.sorted().compactMap { name in
            guard let data = try? Data(contentsOf: base.appending(path: name)),
                let text = String(data: data, encoding: .utf8)
            else { return nil }
            return File(
                path: "\(folder)/\(name)",
                lines: text.split(separator: "\n", omittingEmptySubsequences: false))
        }
    }
}
