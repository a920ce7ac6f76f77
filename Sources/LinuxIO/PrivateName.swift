// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// New files and directories with names that nobody can guess, for their owner alone: `prefix` and six characters
/// (`mkostemp(3)`, `mkdtemp(3)`).
public enum PrivateName {
    /// A new file, open for reading and writing, close-on-exec.
    public struct File: ~Copyable {
        /// Where it is.
        public let path: String
        /// The file.
        public let descriptor: OwnedDescriptor
    }

    /// Makes a file. Whoever asks removes it.
    public static func file(_ prefix: String) throws(SystemError) -> File {
        var template = Self.template(prefix)
        let number = clinux_private_file(&template)
        guard number >= 0 else { throw SystemError(call: "mkostemp", code: -number) }
        return File(path: text(template), descriptor: OwnedDescriptor(taking: number))
    }

    /// Makes a directory, and returns its path. Whoever asks removes it.
    public static func directory(_ prefix: String) throws(SystemError) -> String {
        var template = Self.template(prefix)
        guard mkdtemp(&template) != nil else { throw SystemError(call: "mkdtemp") }
        return text(template)
    }

    private static func template(_ prefix: String) -> [CChar] { Array("\(prefix)XXXXXX".utf8CString) }

    private static func text(_ template: [CChar]) -> String {
        String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
