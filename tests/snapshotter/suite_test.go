// Package suite runs containerd's own suite for snapshotters against `unionmount snapshotter`, through containerd's own
// proxy client: see scripts/containerd-suite. UNIONMOUNT_BIN names the program.
package suite

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func TestUnionmount(t *testing.T) {
	testsuite.SnapshotterSuite(t, "unionmount", start)
}

// start gives each test a snapshotter of its own.
func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	address := filepath.Join(filepath.Dir(root), "s.sock")
	server := exec.Command(os.Getenv("UNIONMOUNT_BIN"), "snapshotter", "--address", address, "--root", root)
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := grpc.DialContext(ctx, dialer.DialAddress(address), grpc.WithBlock(), grpc.WithInsecure(),
		grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		server.Process.Kill()
		server.Wait()
		return nil, nil, err
	}
	stop := func() error {
		conn.Close()
		if err := server.Process.Signal(os.Interrupt); err != nil {
			return err
		}
		return server.Wait()
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "unionmount"), stop, nil
}
