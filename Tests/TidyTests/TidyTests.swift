// SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing

/// House rules that the formatter cannot see.
@Suite struct TidyTests {
    static let sources = Project.swiftFiles("Sources").filter { !$0.isGenerated }
    static let all = sources + Project.swiftFiles("Tests")

    @Test func sourcesAreFound() {
        #expect(Self.sources.count > 50)
    }

    @Test(arguments: all) func everyFileNamesItsLicence(_ file: Project.File) {
        let first = file.lines.prefix(2)
        #expect(
            first.contains("// SPDX-License-Identifier: Apache-2.0"), "\(file.path): licence line missing")
    }

    @Test(arguments: all) func linesAndFilesStayReadable(_ file: Project.File) {
        for (number, line) in file.lines.enumerated() where line.count > 120 {
            Issue.record("\(file.path):\(number + 1): \(line.count) columns")
        }
        #expect(file.lines.count <= 600, "\(file.path): \(file.lines.count) lines; a second noun hides in it")
    }

    /// Calls that have a better place: output goes through the command line's writer or a logger, time through
    /// `Clock`, waiting through tasks and polls.
    static let banned = [
        #"(^|[^\w.])print\("#, #"\bDate\(\)"#, #"(^|[^\w.])(u|nano)?sleep\("#, #"\btry! "#, #"\bTODO\b"#,
        #"\bFIXME\b"#, #"\bfatalError\("#,
    ]

    @Test(arguments: sources) func bannedCallsAreAbsent(_ file: Project.File) throws {
        for pattern in Self.banned {
            let expression = try Regex(pattern)
            for (number, line) in file.lines.enumerated() where line.contains(expression) {
                if line.contains("tidy:allow") || line.drop(while: { $0 == " " }).hasPrefix("//") { continue }
                Issue.record("\(file.path):\(number + 1): \(line.drop(while: { $0 == " " }))")
            }
        }
    }

    @Test func everyModuleHasAReadme() throws {
        let folders = try FileManager.default.contentsOfDirectory(
            atPath: Project.root.appending(path: "Sources").path)
        for module in folders
        where !module.hasPrefix("C") && !module.hasPrefix("coder") || module.hasPrefix("Co") {
            let readme = Project.root.appending(path: "Sources/\(module)/README.md")
            let text = try? String(contentsOf: readme, encoding: .utf8)
            #expect((text?.count ?? 0) > 200, "Sources/\(module)/README.md says too little")
        }
    }

    /// Nothing in the project may depend on where it was written.
    @Test func noMachinePathsInTheProject() {
        let folders = ["Sources", "Tests", "docs", "scripts", "benchmarks", ".ci"]
        let here = ["/wo" + "rk/", "/opt/" + "swift"]
        for file in folders.flatMap(Project.files) {
            for (number, line) in file.lines.enumerated() where here.contains(where: { line.contains($0) }) {
                Issue.record("\(file.path):\(number + 1): path of a machine")
            }
        }
    }
}
