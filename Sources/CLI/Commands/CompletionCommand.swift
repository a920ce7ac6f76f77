// SPDX-License-Identifier: Apache-2.0

/// `coder completion`: what a shell has to read so that Tab completes commands, flags and their values.
enum CompletionCommand {
    private static let shells = ["bash", "fish", "zsh", "powershell"]

    static let command = Command(
        name: "completion", summary: "Print a script that lets your shell complete command lines.",
        details: """
            Read it at the start of each shell, for example in bash:
              echo 'source <(coder completion --shell bash)' >> ~/.bashrc
            in zsh, after compinit:
              echo 'source <(coder completion --shell zsh)' >> ~/.zshrc
            in fish:
              coder completion --shell fish > ~/.config/fish/completions/coder.fish
            """,
        options: [
            CommandOption("shell", short: "s", .choice(shells), help: "The shell. Default: $SHELL."),
            CommandOption("print", short: "p", .bool, help: "Accepted; the script is always printed."),
        ], run: run)

    @Sendable private static func run(_ invocation: Invocation) async throws -> Int32 {
        var shell = invocation.values.string("shell").lowercased()
        if shell.isEmpty {
            shell = (invocation.environment["SHELL"] ?? "").split(separator: "/").last.map(String.init) ?? ""
        }
        guard let script = script(shell, program: invocation.programName) else {
            throw CommandError(
                "there is no completion for the shell \"\(Table.clean(shell))\": choose one with --shell"
                    + " (\(shells.joined(separator: ", ")))")
        }
        invocation.console.out(script)
        return 0
    }

    /// Candidates are lines: names of columns have blanks in them.
    private static func script(_ shell: String, program: String) -> String? {
        // The name becomes part of a script.
        let name = String(
            program.unicodeScalars.map { scalar in
                "-_.".unicodeScalars.contains(scalar) || scalar.isASCII && scalar.properties.isAlphabetic
                    || (48...57).contains(scalar.value) ? Character(scalar) : "_"
            })
        switch shell {
        case "bash":
            return """
                _coder_complete() {
                    local IFS=$'\\n'
                    COMPREPLY=($(COMPLETION_MODE=1 "${COMP_WORDS[0]}" "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null))
                }
                complete -o default -F _coder_complete \(name)

                """
        case "zsh":
            return """
                #compdef \(name)
                _coder_complete() {
                    local -a found
                    found=("${(@f)$(COMPLETION_MODE=1 "${words[1]}" "${(@)words[2,$CURRENT]}" 2>/dev/null)}")
                    [[ -n "$found" ]] && compadd -Q -- "${(@q)found}" || _files
                }
                compdef _coder_complete \(name)

                """
        case "fish":
            return """
                function _coder_complete
                    set -l words (commandline -opc) (commandline -ct)
                    COMPLETION_MODE=1 $words[1] $words[2..-1] 2>/dev/null
                end
                complete -c \(name) -f -a '(_coder_complete)'

                """
        case "powershell", "pwsh":
            return """
                Register-ArgumentCompleter -Native -CommandName \(name) -ScriptBlock {
                    param($word, $line, $cursor)
                    $words = @($line.CommandElements | Select-Object -Skip 1 | ForEach-Object { $_.ToString() })
                    if ($word -eq '') { $words += '' }
                    $env:COMPLETION_MODE = 1
                    try { & \(name) @words } finally { Remove-Item Env:COMPLETION_MODE }
                }

                """
        default: return nil
        }
    }
}
