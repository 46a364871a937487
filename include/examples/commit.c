/* cc -I include include/examples/commit.c -o commit && ./commit /mnt/images/working/vm1 [NAME] */
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include "p2pvm.h"

int main(int argc, char **argv)
{
	struct p2pvm_commit commit = { .message = "from C" };
	int file = argc < 2 ? -1 : open(argv[1], O_RDONLY);

	if (argc > 2)
		snprintf(commit.name, sizeof commit.name, "%s", argv[2]);
	if (file < 0 || ioctl(file, P2PVM_IOC_COMMIT, &commit) != 0)
		return perror("commit"), 1;
	return printf("%s@%llu\n", commit.blob, commit.version) < 0;
}
