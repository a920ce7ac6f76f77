// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import Testing

@Suite struct CronTests {
    private typealias Moment = CronSchedule.Moment

    /// Schedule; second, minute, hour, day, month, weekday; due or not.
    static let cases: [(String, [Int], Bool)] = [
        ("* * * * * *", [1, 2, 3, 4, 5, 6], true),
        ("0 30 9 * *", [0, 30, 9, 17, 3, 2], true),
        ("0 30 9 * *", [1, 30, 9, 17, 3, 2], false),
        ("*/20 * * * *", [40, 7, 0, 1, 1, 0], true),
        ("*/20 * * * *", [41, 7, 0, 1, 1, 0], false),
        ("5/30 * * * *", [35, 0, 0, 1, 1, 0], true),
        ("0 0 8-10 * * mon-fri", [0, 0, 9, 1, 1, 3], true),
        ("0 0 8-10 * * MON-FRI", [0, 0, 9, 1, 1, 0], false),
        ("0 0 0 1 jan,jul ?", [0, 0, 0, 1, 7, 4], true),
        ("0 0 0 1 jan,jul ?", [0, 0, 0, 1, 8, 4], false),
        // Both days restricted: either will do.
        ("0 0 0 13 * fri", [0, 0, 0, 13, 2, 1], true),
        ("0 0 0 13 * fri", [0, 0, 0, 20, 2, 5], true),
        ("0 0 0 13 * fri", [0, 0, 0, 20, 2, 1], false),
    ]

    @Test(arguments: cases.indices) func isDue(index: Int) throws {
        let (text, at, isDue) = Self.cases[index]
        let schedule = try #require(CronSchedule(text))
        let moment = Moment(
            second: at[0], minute: at[1], hour: at[2], day: at[3], month: at[4], weekday: at[5])
        #expect(schedule.matches(moment) == isDue, "\(text)")
    }

    @Test(arguments: [
        "", "* * * *", "* * * * * * *", "60 * * * * *", "* * 24 * * *", "* * * 0 * *", "* * * * 13 *",
        "a * * * *",
        "*/0 * * * *", "5-1 * * * *", ", * * * *", "1/2/3 * * * *", "* * * * * 7", "- * * * *", "@daily",
    ])
    func isNoSchedule(text: String) {
        #expect(CronSchedule(text) == nil)
    }

    @Test(
        arguments: [
            ("", "{\n    \"git.useIntegratedAskPass\": false,\n    \"github.gitAuthentication\": false\n}\n"),
            (
                "{}",
                "{\n    \"git.useIntegratedAskPass\": false,\n    \"github.gitAuthentication\": false\n}"
            ),
            (
                "{ // mine\n \"git.useIntegratedAskPass\": true }",
                "{\n    \"github.gitAuthentication\": false, // mine\n \"git.useIntegratedAskPass\": true }"
            ),
            ("[1]", nil),
        ] as [(String, String?)])
    func editorSettingsKeepWhatIsThere(before: String, after: String?) {
        #expect(EditorSettings.edited(before) == after)
    }

    @Test func editorSettingsAreWrittenOnce() {
        var template = Array("/tmp/editor-test.XXXXXX".utf8CString)
        let home = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
        EditorSettings.preferAskpass(home: home, dataHome: nil)
        for file in [".vscode-server/data", ".cursor-server/data", ".local/share/code-server"] {
            #expect(access("\(home)/\(file)/Machine/settings.json", F_OK) == 0)
        }
        var (first, second) = (stat(), stat())
        let path = "\(home)/.vscode-server/data/Machine/settings.json"
        #expect(stat(path, &first) == 0)
        EditorSettings.preferAskpass(home: home, dataHome: nil)
        #expect(stat(path, &second) == 0 && first.st_ino == second.st_ino)
    }
}
