// The kubelet's side of the device plugin API, made of Kubernetes' own published messages and grpc-go with the options
// that the kubelet dials with. It waits in the directory named by the first argument until the resource named by the
// third registers, asks for everything that a kubelet asks for, and prints the answers as JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

type registry struct {
	api.UnimplementedRegistrationServer
	requests chan *api.RegisterRequest
}

func (r *registry) Register(_ context.Context, request *api.RegisterRequest) (*api.Empty, error) {
	r.requests <- request
	return &api.Empty{}, nil
}

type answers struct {
	Request   *api.RegisterRequest           `json:"request"`
	Options   *api.DevicePluginOptions       `json:"options"`
	Devices   int                            `json:"devices"`
	First     *api.Device                    `json:"first"`
	Last      *api.Device                    `json:"last"`
	Preferred []string                       `json:"preferred"`
	Allocated *api.ContainerAllocateResponse `json:"allocated"`
	Refused   string                         `json:"refused"`
	Error     string                         `json:"error"`
}

func main() {
	count, _ := strconv.Atoi(os.Args[2])
	found, err := converse(os.Args[1], count, os.Args[3])
	if err != nil {
		found.Error = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func converse(directory string, count int, resource string) (*answers, error) {
	found := &answers{}
	listener, err := net.Listen("unix", filepath.Join(directory, "kubelet.sock"))
	if err != nil {
		return found, err
	}
	server := grpc.NewServer()
	registrations := &registry{requests: make(chan *api.RegisterRequest, 8)}
	api.RegisterRegistrationServer(server, registrations)
	go server.Serve(listener)
	defer server.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for found.Request == nil || found.Request.ResourceName != resource {
		select {
		case found.Request = <-registrations.requests:
		case <-ctx.Done():
			return found, ctx.Err()
		}
	}
	connection, err := grpc.NewClient("passthrough:///"+filepath.Join(directory, found.Request.Endpoint),
		grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		return found, err
	}
	defer connection.Close()
	plugin := api.NewDevicePluginClient(connection)
	if found.Options, err = plugin.GetDevicePluginOptions(ctx, &api.Empty{}); err != nil {
		return found, err
	}
	stream, err := plugin.ListAndWatch(ctx, &api.Empty{})
	if err != nil {
		return found, err
	}
	list, err := stream.Recv()
	if err != nil {
		return found, err
	}
	found.Devices = len(list.Devices)
	found.First, found.Last = list.Devices[0], list.Devices[len(list.Devices)-1]
	ids := make([]string, 0, len(list.Devices))
	for _, device := range list.Devices {
		ids = append(ids, device.ID)
	}
	preferred, err := plugin.GetPreferredAllocation(ctx, &api.PreferredAllocationRequest{
		ContainerRequests: []*api.ContainerPreferredAllocationRequest{
			{AvailableDeviceIDs: ids, AllocationSize: int32(count)},
		},
	})
	if err != nil {
		return found, err
	}
	found.Preferred = preferred.ContainerResponses[0].DeviceIDs
	allocated, err := plugin.Allocate(ctx, &api.AllocateRequest{
		ContainerRequests: []*api.ContainerAllocateRequest{{DevicesIds: found.Preferred}},
	})
	if err != nil {
		return found, err
	}
	found.Allocated = allocated.ContainerResponses[0]
	if _, err := plugin.PreStartContainer(ctx, &api.PreStartContainerRequest{DevicesIds: found.Preferred}); err != nil {
		return found, err
	}
	_, err = plugin.Allocate(ctx, &api.AllocateRequest{
		ContainerRequests: []*api.ContainerAllocateRequest{{DevicesIds: []string{"nonsense"}}},
	})
	found.Refused = fmt.Sprint(err)
	return found, nil
}
