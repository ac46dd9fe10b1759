// Loaded before a program that would outlive whoever started it: its standard input ends when that process ends.
process.stdin.on("end", () => process.exit(0)).resume();
